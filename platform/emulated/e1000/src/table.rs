//! What each register does when it is read or written: one row each.

use crate::registers::*;

/// A register's nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Memory, of which the guest can write these bits.
    Plain(u32),
    /// Memory that the guest cannot write.
    ReadOnly,
    /// Reads and writes do something; [`Mac`](crate::mac::Mac) knows what.
    Active,
    /// Counts; reading clears it. 8254x 4.0 §13.7
    Counter,
    /// The low half of a count of 64 bits; reading the high half clears both.
    CounterLow,
    /// The high half.
    CounterHigh,
}

/// `count` registers from `start` on.
struct Row {
    start: u32,
    count: u32,
    kind: Kind,
}

const fn row(start: u32, count: u32, kind: Kind) -> Row {
    Row { start, count, kind }
}

use Kind::{Active, Counter, CounterHigh, CounterLow, Plain, ReadOnly};

/// By offset. What is not here reads as 0 and cannot be written.
const TABLE: &[Row] = &[
    row(CTRL, 2, Active),
    row(STATUS, 1, ReadOnly),
    row(EECD, 1, Active),
    row(EERD, 1, Active),
    row(CTRL_EXT, 1, Plain(!0)),
    row(MDIC, 1, Active),
    row(FCAL, 3, Plain(!0)),
    row(VET, 1, Plain(0xffff)),
    row(ICR, 1, Active),
    row(ITR, 1, Plain(0xffff)),
    row(ICS, 1, Active),
    row(IMS, 1, Active),
    row(IMC, 1, Active),
    row(RCTL, 1, Active),
    row(FCTTV, 1, Plain(0xffff)),
    row(TXCW, 1, Plain(!0)),
    row(TCTL, 1, Active),
    row(TIPG, 1, Plain(0x3fff_ffff)),
    row(AIT, 1, Plain(0xffff)),
    row(LEDCTL, 1, Plain(!0)),
    row(PBA, 1, Plain(0xffff)),
    row(FCRTL, 1, Plain(0x8000_fff8)),
    row(FCRTL + 8, 1, Plain(0xfff8)),
    row(RDFH, 1, Plain(0x1fff)),
    row(RDFH + 8, 1, Plain(0x1fff)),
    row(RDBAL, 1, Plain(!0xf)),
    row(RDBAL + 4, 1, Plain(!0)),
    row(RDLEN, 1, Plain(0xf_ff80)),
    row(RDH, 1, Plain(0xffff)),
    row(RDT, 1, Active),
    row(RDTR, 1, Active),
    row(RXDCTL, 1, Plain(0x013f_3f3f)),
    row(RADV, 1, Plain(0xffff)),
    row(RSRPD, 1, Plain(0xfff)),
    row(TXDMAC, 1, Plain(1)),
    row(TDFH, 1, Plain(0x1fff)),
    row(TDFH + 8, 1, Plain(0x1fff)),
    row(TDBAL, 1, Plain(!0xf)),
    row(TDBAL + 4, 1, Plain(!0)),
    row(TDLEN, 1, Plain(0xf_ff80)),
    row(TDH, 1, Plain(0xffff)),
    row(TDT, 1, Active),
    row(TIDV, 1, Plain(0xffff)),
    row(TXDCTL, 1, Plain(!0)),
    row(TADV, 1, Plain(0xffff)),
    row(TSPMT, 1, Plain(!0)),
    row(CRCERRS, 34, Counter),
    row(0x4088, 1, CounterLow),
    row(0x408c, 1, CounterHigh),
    row(0x4090, 1, CounterLow),
    row(0x4094, 1, CounterHigh),
    row(0x40a0, 8, Counter),
    row(0x40c0, 1, CounterLow),
    row(0x40c4, 1, CounterHigh),
    row(0x40c8, 1, CounterLow),
    row(0x40cc, 1, CounterHigh),
    row(0x40d0, 12, Counter),
    row(RXCSUM, 1, Plain(0x7ff)),
    row(MTA, 128, Plain(!0)),
    // Pairs: the low half whole, of the high half the address's end, what it selects and whether it is valid.
    row(RAL, 32, Active),
    row(VFTA, 128, Plain(!0)),
    row(WUC, 8, Plain(!0)),
    row(MANC, 1, Plain(!0)),
];

/// The nature of the register at `offset`, a multiple of four.
pub(crate) fn kind(offset: u32) -> Option<Kind> {
    let at = TABLE.partition_point(|row| row.start <= offset);
    let row = TABLE.get(at.checked_sub(1)?)?;
    (offset - row.start < row.count * 4).then_some(row.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_do_not_overlap() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].start + pair[0].count * 4 <= pair[1].start,
                "{:#x}",
                pair[1].start
            );
        }
        let last = TABLE.last().unwrap();
        assert!(last.start + last.count * 4 <= END);
        assert_eq!(kind(CTRL + 4), Some(Active), "an alias");
        assert_eq!(kind(0x0c), None);
        assert_eq!(kind(MTA + 127 * 4), Some(Plain(!0)));
        assert_eq!(kind(END), None);
    }
}
