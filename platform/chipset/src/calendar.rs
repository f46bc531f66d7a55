//! Days and dates, proleptic Gregorian, UTC.

/// A moment as a clock shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: i64,
    /// 1 to 12.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
    /// 1 is Sunday.
    pub(crate) weekday: u8,
}

const DAY_S: i64 = 86_400;
/// Days of 400 years.
const ERA_DAYS: i64 = 146_097;
/// From 1 March of year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;

/// The date `unix_s` seconds after 1970.
pub(crate) fn from_unix(unix_s: i64) -> Date {
    let days = unix_s.div_euclid(DAY_S);
    let second_of_day = unix_s.rem_euclid(DAY_S);
    // Years are counted from March, so that a leap day is the last day of its year.
    let since_march_0 = days + EPOCH_DAYS;
    let era = since_march_0.div_euclid(ERA_DAYS);
    let day_of_era = since_march_0.rem_euclid(ERA_DAYS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    Date {
        year: year_of_era + era * 400 + i64::from(month <= 2),
        month: month as u8,
        day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
        hour: (second_of_day / 3600) as u8,
        minute: (second_of_day / 60 % 60) as u8,
        second: (second_of_day % 60) as u8,
        weekday: ((days + 4).rem_euclid(7) + 1) as u8,
    }
}

/// Seconds since 1970; the weekday is not looked at, and numbers out of range carry over.
pub(crate) fn to_unix(date: Date) -> i64 {
    let year = date.year - i64::from(date.month <= 2);
    let march_month = (i64::from(date.month) + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + i64::from(date.day) - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = year.div_euclid(400) * ERA_DAYS + day_of_era - EPOCH_DAYS;
    days * DAY_S + i64::from(date.hour) * 3600 + i64::from(date.minute) * 60 + i64::from(date.second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_both_ways() {
        let date = from_unix(951_827_696);
        let expected = Date {
            year: 2000,
            month: 2,
            day: 29,
            hour: 12,
            minute: 34,
            second: 56,
            weekday: 3,
        };
        assert_eq!(date, expected, "a leap day of a year that 100 divides");
        for unix_s in (-5_000_000_000..50_000_000_000).step_by(86_399 * 97) {
            assert_eq!(to_unix(from_unix(unix_s)), unix_s);
        }
    }
}
