//! The threads that answer questions, one for each core. Each has its own sockets and its own tasks, which never move to
//! another thread: moving them would take more time than an answer.

use crate::kernel::panic_point;
use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Most threads. Four of them answer more than a device's containers ask.
const MOST: usize = 4;
/// Stack size of a thread, bytes. It is address space; only the part in use takes memory.
const STACK: usize = 256 << 10;
/// Threads of each of them for blocking work: one to read the device's `resolv.conf`, and one to read the certificates of
/// authorities, of which each has a lock. So a file system that does not answer delays only who needs that file.
const BLOCKING: usize = 2;

/// The threads; dropping this ends them and what runs on them.
pub(super) struct Lanes {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    /// Cancelled when one of the threads ends.
    broken: CancellationToken,
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn new() -> io::Result<Self> {
        let (stop, broken) = (CancellationToken::new(), CancellationToken::new());
        let mut lanes = Self { handles: Vec::new(), threads: Vec::new(), stop, broken };
        let count = thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST));
        for _ in 0..count {
            lanes.start()?;
        }
        Ok(lanes)
    }

    fn start(&mut self) -> io::Result<()> {
        let (runs, started) = mpsc::channel();
        let (stop, broken) = (self.stop.clone(), self.broken.clone());
        let body = move || {
            // By a panic, too. The panic of a task ends only that task.
            let _ended = broken.drop_guard();
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
            let Ok(runtime) = runtime.map_err(|e| runs.send(Err(e))) else { return };
            if runs.send(Ok(runtime.handle().clone())).is_ok() {
                runtime.block_on(async {
                    panic_point::pass("names");
                    stop.cancelled().await;
                });
            }
            // A file system that does not answer must not keep the daemon from ending.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("pv-net-names".to_owned()).stack_size(STACK).spawn(body)?;
        self.threads.push(thread);
        self.handles.push(started.recv().map_err(io::Error::other)??);
        Ok(())
    }

    /// Waits until one of the threads has ended, which none does by itself. Then some clients are not answered any more.
    pub fn broken(&self) -> impl Future<Output = ()> + use<> {
        self.broken.clone().cancelled_owned()
    }

    /// The runtime of each thread.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
