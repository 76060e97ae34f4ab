//! The threads that answer questions, one for each core. Each has its own sockets and its own tasks, which never move to
//! another thread: moving them would take more time than an answer.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Most threads. Four of them answer more than a device's containers ask.
const MOST: usize = 4;
/// Stack size of a thread, bytes. It is address space; only the part in use takes memory.
const STACK: usize = 256 << 10;
/// Threads of each of them for blocking work: to read the device's `resolv.conf`.
const BLOCKING: usize = 1;

/// The threads; dropping this ends them and what runs on them.
pub(super) struct Lanes {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn new() -> io::Result<Self> {
        let mut lanes = Self { handles: Vec::new(), threads: Vec::new(), stop: CancellationToken::new() };
        let count = thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST));
        for _ in 0..count {
            lanes.start()?;
        }
        Ok(lanes)
    }

    fn start(&mut self) -> io::Result<()> {
        let (runs, started) = mpsc::channel();
        let stop = self.stop.clone();
        let body = move || {
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
            let Ok(runtime) = runtime.map_err(|e| runs.send(Err(e))) else { return };
            if runs.send(Ok(runtime.handle().clone())).is_ok() {
                runtime.block_on(stop.cancelled());
            }
            // A file system that does not answer must not keep the daemon from ending.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("pv-net-names".to_owned()).stack_size(STACK).spawn(body)?;
        self.threads.push(thread);
        self.handles.push(started.recv().map_err(io::Error::other)??);
        Ok(())
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
