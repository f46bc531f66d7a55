use crate::CatalogError;
use crate::error::named;
use treaty_plan::{PollChoice, WorkersPlan};
use treaty_worker::{Poll, ReactorKind, Worker, WorkerError, WorkerHandle, WorkerOptions};

/// The worker threads of a machine or daemon. Dropping it drains and joins all of them.
pub struct WorkerPool {
    kind: ReactorKind,
    poll: Poll,
    workers: Vec<Worker>,
}

/// As a worker wants it; `None` if nothing was chosen.
pub fn poll_of(choice: Option<PollChoice>, max_us: Option<u32>) -> Option<Poll> {
    let max_us = max_us.unwrap_or(Poll::USUAL_MAX_US);
    Some(match choice? {
        PollChoice::Off => Poll::Off,
        PollChoice::Adaptive => Poll::Adaptive { max_us },
        PollChoice::Always => Poll::Always,
    })
}

impl WorkerPool {
    /// Workers will use this reactor, and those of devices that do not say will poll like this.
    pub fn new(kind: ReactorKind, poll: Poll) -> Self {
        Self {
            kind,
            poll,
            workers: Vec::new(),
        }
    }

    /// One new worker thread.
    pub fn one(&mut self, name: &str) -> Result<WorkerHandle, WorkerError> {
        self.start(name, self.poll, None)
    }

    /// One new worker thread for device `name`, which has no virtqueues.
    pub fn for_card(&mut self, name: &str) -> Result<WorkerHandle, CatalogError> {
        self.one(name).map_err(named(name))
    }

    fn start(&mut self, name: &str, poll: Poll, cpu: Option<u16>) -> Result<WorkerHandle, WorkerError> {
        let options = WorkerOptions {
            reactor: self.kind,
            poll,
            cpu,
        };
        let worker = Worker::start_with(name, options)?;
        let handle = worker.handle();
        self.workers.push(worker);
        Ok(handle)
    }

    /// New worker threads as `plan` says; the one of each of `queues` virtqueues of device `name`.
    pub fn for_queues(
        &mut self,
        name: &str,
        queues: u16,
        plan: &WorkersPlan,
    ) -> Result<Vec<WorkerHandle>, WorkerError> {
        let poll = match (plan.poll, plan.poll_us, self.poll) {
            (None, Some(max_us), Poll::Adaptive { .. }) => Poll::Adaptive { max_us },
            (choice, max_us, usual) => poll_of(choice, max_us).unwrap_or(usual),
        };
        let count = plan.count(queues);
        let kind = if count == queues { 'q' } else { 'w' };
        let workers: Result<Vec<_>, _> = (0..count)
            .map(|worker| self.start(&format!("{name}-{kind}{worker}"), poll, plan.cpu_of(worker)))
            .collect();
        let workers = workers?;
        let of_queue = |queue| workers.get(usize::from(plan.worker_of(queue, queues))).cloned();
        Ok((0..queues).filter_map(of_queue).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_name() {
        let mut pool = WorkerPool::new(ReactorKind::Auto, Poll::Off);
        let plan = WorkersPlan {
            cpus: Some("9999".parse().unwrap()),
            ..WorkersPlan::default()
        };
        let Err(error) = pool.for_queues("disk0", 1, &plan) else {
            panic!("there is no such CPU");
        };
        assert!(
            error
                .to_string()
                .starts_with("cannot run worker \"disk0-q0\" on CPU 9999"),
            "{error}"
        );
    }

    #[test]
    fn queues_share_the_workers_of_the_plan() {
        let mut pool = WorkerPool::new(ReactorKind::Auto, Poll::Off);
        let plan = WorkersPlan {
            count: Some(2),
            cpus: Some("0".parse().unwrap()),
            ..WorkersPlan::default()
        };
        assert_eq!(pool.for_queues("shared", 4, &plan).unwrap().len(), 4);
        assert_eq!(pool.workers.len(), 2);
        for name in ["shared-w0", "shared-w1"] {
            assert_eq!(cpus_of_thread(name), "0");
        }
    }

    /// The CPUs that a thread of this process may run on, as the kernel writes them.
    fn cpus_of_thread(name: &str) -> String {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let status = threads
            .map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default())
            .find(|status| status.starts_with(&format!("Name:\t{name}\n")));
        let status = status.expect("the thread runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    }
}
