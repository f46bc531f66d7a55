use super::*;
use crate::Stage;

fn timer(rule: Rule) -> (Timer, Arc<QueueCounters>) {
    let counters = Arc::new(QueueCounters::default());
    counters.stages.set_rule(rule);
    (Timer::new(counters.clone(), 8), counters)
}

fn count(counters: &QueueCounters) -> u64 {
    counters.stages.total().buckets().map(|(_, count)| count).sum()
}

/// One burst, all of it answered.
fn burst(timer: &mut Timer, count: usize) {
    if timer.took(count) {
        timer.sample(timer.place(count), count, 8, 1);
    }
    timer.submitted();
    (0..count).for_each(|head| timer.completed(head));
    if let Some(published) = timer.publishing() {
        timer.published(published, true);
    }
}

#[test]
fn stages_add_up_to_the_total() {
    let (mut timer, counters) = timer(Rule::EveryBurst);
    for _ in 0..100 {
        burst(&mut timer, 3);
    }
    let stages: u64 = STAGES.iter().map(|stage| counters.stages.of(*stage).sum()).sum();
    assert_eq!((count(&counters), stages), (100, counters.stages.total().sum()));
}

#[test]
fn one_in_256_is_timed() {
    let (mut timer, counters) = timer(Rule::Sampled);
    for _ in 0..6400 {
        burst(&mut timer, 1);
    }
    assert_eq!(count(&counters), 25);
    assert_eq!((counters.bursts.get(), counters.completed.get()), (6400, 6400));
}

#[test]
fn a_queue_that_seldom_works_is_timed_by_the_clock() {
    let (mut timer, counters) = timer(Rule::Sampled);
    burst(&mut timer, 1);
    let before = count(&counters);
    timer.sleeps();
    std::thread::sleep(std::time::Duration::from_millis(5));
    timer.gets_up(None);
    burst(&mut timer, 1);
    assert_eq!(count(&counters), before + 1);
    timer.sleeps();
    assert!((5_000_000..).contains(&Clock::new().ns(counters.empty_ticks.get())));
    assert_eq!(counters.doorbells.get(), 2);
}

#[test]
fn off_takes_no_times() {
    let (mut timer, counters) = timer(Rule::Off);
    for _ in 0..1000 {
        timer.sleeps();
        timer.gets_up(None);
        burst(&mut timer, 1);
    }
    assert_eq!((count(&counters), counters.empty_ticks.get()), (0, 0));
    assert_eq!(counters.chains.get(), 1000);
}

#[test]
fn a_chain_that_completes_at_once_spends_no_time_at_the_host() {
    let (mut timer, counters) = timer(Rule::EveryBurst);
    assert!(timer.took(1));
    timer.sample(7, 1, 8, 1);
    timer.completed(7);
    let published = timer.publishing().unwrap();
    timer.published(published, false);
    // Between two stamps that are taken one after the other.
    assert!(counters.stages.of(Stage::Done).sum() < 1_000_000);
    assert_eq!(counters.stages.of(Stage::Interrupted).sum(), 0);
    assert_eq!(count(&counters), 1);
    assert!(timer.publishing().is_none(), "nothing left to do");
}

#[test]
fn a_timed_chain_outlives_publications_of_others() {
    let (mut timer, counters) = timer(Rule::EveryBurst);
    assert!(timer.took(2));
    timer.sample(1, 2, 8, 1);
    timer.completed(0);
    let published = timer.publishing().unwrap();
    timer.published(published, true);
    assert_eq!(count(&counters), 0);
    assert!(!timer.took(1), "one at a time");
    timer.completed(1);
    let published = timer.publishing().unwrap();
    timer.published(published, true);
    assert_eq!(count(&counters), 1);
}

#[test]
fn a_full_ring_is_timed_and_the_most_in_flight_kept() {
    let (mut timer, counters) = timer(Rule::Sampled);
    // Chains of two descriptors: four of them fill eight entries.
    timer.took(1);
    timer.sample(0, 1, 8, 2);
    assert!(!timer.took(2));
    assert_eq!((counters.high_water.get(), timer.full_since), (3, None));
    assert!(!timer.took(1));
    assert!(timer.full_since.is_some());
    std::thread::sleep(std::time::Duration::from_millis(2));
    timer.completed(0);
    let published = timer.publishing().unwrap();
    timer.published(published, false);
    assert!((2_000_000..).contains(&Clock::new().ns(counters.full_ticks.get())));
    assert_eq!(counters.high_water.get(), 4);
    for _ in 0..3 {
        timer.completed(9);
    }
    assert!(timer.publishing().is_none());
}
