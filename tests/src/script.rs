//! Scripts of what happens to an image, made from a seed. They say what to do in numbers that make sense wherever the script
//! is cut, so that one that fails can be shrunk.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use treaty_worker::sim::Random;

/// One request, in numbers that the test makes fit.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What it does.
    pub what: u64,
    /// Where.
    pub at: u64,
    /// Which of the longest lengths holds for it.
    pub scale: usize,
    /// How long.
    pub len: u64,
    /// Zeroing may free space.
    pub unmap: bool,
    /// A write is durable when it ends.
    pub durable: bool,
}

impl Ask {
    fn new(random: &mut Random) -> Self {
        Self {
            what: random.below(1 << 32),
            at: random.below(1 << 32),
            scale: random.below(3) as usize,
            len: random.below(1 << 32),
            unmap: random.chance(500),
            durable: random.chance(50),
        }
    }

    /// First sector and how many, on a disk of so many.
    pub fn range(&self, sectors: u64, longest: [u64; 3]) -> (u64, u64) {
        let first = self.at % sectors;
        let most = longest[self.scale].min(sectors - first);
        (first, 1 + self.len % most)
    }
}

/// A step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests at once.
    Batch(Vec<Ask>),
    /// A flush.
    Flush,
    /// The image is closed and opened.
    Reopen,
    /// An internal snapshot.
    Create,
    /// The disk becomes what it was.
    Apply(u64),
    /// A snapshot goes.
    Delete(u64),
    /// Another length.
    Resize(u64),
    /// A new image on top.
    Overlay(u64),
    /// The topmost image is written to the one below it.
    Commit,
    /// The topmost image goes over the one below the one below it, or none.
    Rebase,
}

/// A script of so many batches of at most so many requests, with other steps between.
pub fn script(random: &mut Random, batches: u64, most: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..batches {
        let asks = (0..1 + random.below(most)).map(|_| Ask::new(random)).collect();
        steps.push(Step::Batch(asks));
        let number = random.below(1 << 32);
        steps.extend(match random.below(40) {
            0..5 => Some(Step::Flush),
            5..8 => Some(Step::Reopen),
            8..10 => Some(Step::Create),
            10 => Some(Step::Apply(number)),
            11 => Some(Step::Delete(number)),
            12..14 => Some(Step::Resize(number)),
            14 => Some(Step::Overlay(number)),
            15 => Some(Step::Commit),
            16 => Some(Step::Rebase),
            _ => None,
        });
    }
    steps
}

/// Tries at shrinking one list.
const TRIES: usize = 300;

/// Leaves out what a failure does not need, in larger pieces first (ddmin): a part of `items`, in its order, that fails and
/// of which nothing single can be left out, unless the tries are used up before.
pub fn shrink<T: Clone>(items: &[T], mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut kept = items.to_vec();
    let (mut parts, mut left) = (2, TRIES);
    while !kept.is_empty() {
        let size = kept.len().div_ceil(parts);
        let (mut start, mut shorter) = (0, false);
        while start < kept.len() {
            if left == 0 {
                return kept;
            }
            left -= 1;
            let end = (start + size).min(kept.len());
            let without = [&kept[..start], &kept[end..]].concat();
            if fails(&without) {
                kept = without;
                shorter = true;
            } else {
                start = end;
            }
        }
        match (shorter, size) {
            (true, _) => parts = (parts - 1).max(2),
            (false, 1) => return kept,
            (false, _) => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}

/// Runs a script. If it fails, it is shrunk, and the answer is the error of the shortest one found, with that script.
pub fn run_shrinking<T>(script: &[Step], run: impl Fn(&[Step]) -> Result<T>) -> Result<T> {
    let guarded = |steps: &[Step]| match catch_unwind(AssertUnwindSafe(|| run(steps))) {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("it panicked")),
    };
    let first = match guarded(script) {
        Ok(fine) => return Ok(fine),
        Err(error) => error,
    };
    eprintln!(
        "a script of {} steps fails ({first:#}); it is being shrunk",
        script.len()
    );
    let mut least = shrink(script, |steps| guarded(steps).is_err());
    for index in 0..least.len() {
        let Step::Batch(asks) = least[index].clone() else {
            continue;
        };
        let with = |asks: &[Ask]| {
            let mut steps = least.clone();
            steps[index] = Step::Batch(asks.to_vec());
            steps
        };
        let asks = shrink(&asks, |asks| guarded(&with(asks)).is_err());
        least[index] = Step::Batch(asks);
    }
    let error = match guarded(&least) {
        Err(error) => error,
        Ok(_) => first.context("it does not fail every time; of the whole script"),
    };
    Err(error.context(format!(
        "{} of {} steps fail: {least:#?}",
        least.len(),
        script.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_needs_is_found() {
        let items: Vec<u32> = (0..100).collect();
        let needs = |list: &[u32]| [17, 18, 71].iter().all(|item| list.contains(item));
        assert_eq!(shrink(&items, needs), [17, 18, 71]);
        assert!(shrink(&items, |_| true).is_empty());
    }

    #[test]
    fn a_failing_script_is_shown_without_what_it_does_not_need() {
        let steps = script(&mut Random::new(3), 40, 6);
        // Fails where a long request comes after a flush.
        let run = |steps: &[Step]| {
            let flush = steps.iter().position(|step| matches!(step, Step::Flush));
            let after = flush.map_or(&[][..], |flush| &steps[flush..]);
            let long = after.iter().any(|step| match step {
                Step::Batch(asks) => asks.iter().any(|ask| ask.scale == 2),
                _ => false,
            });
            anyhow::ensure!(!long, "planted");
            Ok(())
        };
        let told = format!("{:?}", run_shrinking(&steps, run).unwrap_err());
        assert!(told.starts_with("2 of ") && told.contains("planted"), "{told}");
        assert_eq!(told.matches("Ask {").count(), 1, "{told}");
    }
}
