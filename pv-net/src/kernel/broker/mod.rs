//! The broker: a process beside the daemon that may do what the daemon may not, which is to enter namespaces and to
//! look at other processes.
//!
//! The daemon starts it before it gives up its own privileges, and talks to it by a socket. The broker forks a child
//! for each request. The child enters the namespace and returns open files that work there from outside
//! ([`enter`](super::netns::enter)). A namespace that does not answer holds up its own request only. The broker ends
//! with the daemon. If it ends before, the daemon has no privileges left to start another one, and ends too.

mod message;
mod serve;
mod turns;

pub use serve::{NAME, run};

use super::listeners::Listener;
use super::netlink::Netns;
use super::netns::{Inside, NetnsError, PATIENCE};
use crate::model::NetnsRef;
use message::{Reply, Request, receive, send};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use turns::{Turn, Turns};

/// The hidden subcommand that runs the broker.
pub const SUBCOMMAND: &str = "broker";
/// How long finding a socket's owner may take. The name is only for messages, so it is not worth more time.
const BRIEFLY: Duration = Duration::from_secs(1);

/// The daemon's handle to the broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    socket: Arc<OwnedFd>,
    turns: Arc<Turns>,
}

fn pair(flags: SockFlag) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC | flags)?)
}

/// A socket that the tokio runtime watches.
fn watched(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

impl Broker {
    fn at(socket: OwnedFd) -> Self {
        Self { socket: Arc::new(socket), turns: Arc::new(Turns::new()) }
    }

    /// Starts the broker with all privileges of the caller.
    ///
    /// # Errors
    /// When this program cannot be started a second time.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = pair(SockFlag::empty())?;
        // No other program and no shell: this one is executed anew and not forked, so that the more privileged process
        // shares no memory with the daemon. `/proc/self/exe` is the same program even when its file was replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("pv-net").arg(SUBCOMMAND).stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        Ok(Self::at(ours))
    }

    /// A broker that runs on threads of this process, for tests.
    #[cfg(test)]
    pub fn on_threads() -> Self {
        let (ours, theirs) = pair(SockFlag::empty()).expect("a pair of sockets");
        std::thread::spawn(move || {
            let start = |request, to| {
                std::thread::spawn(move || serve::answer(&request, &to));
                Ok(())
            };
            serve::serve(theirs.as_fd(), start)
        });
        Self::at(ours)
    }

    /// Waits until the broker has ended.
    pub async fn ended(&self) {
        // The broker sends nothing on this socket, so it becomes readable only when the broker's end is closed.
        match self.socket.try_clone().and_then(watched) {
            Ok(socket) => drop(socket.readable().await),
            Err(e) => {
                tracing::warn!(error = %e, "the broker is not watched");
                std::future::pending().await
            }
        }
    }

    /// Opens the network namespace that `reference` leads to.
    ///
    /// # Errors
    /// When it does not exist, is no network namespace or is the daemon's own; when it takes too long, too many others
    /// hang, or the broker is gone.
    pub async fn open(&self, reference: &NetnsRef) -> Result<Netns, NetnsError> {
        let path = reference.path();
        let request = Request::Open(reference.clone());
        let deadline = Instant::now() + PATIENCE;
        let slow = || NetnsError::Slow { what: format!("namespace {}", path.display()) };
        let Ok(turn) = timeout_at(deadline, self.turns.enter(&path)).await else {
            return Err(if self.turns.is_full() { NetnsError::Busy { path } } else { slow() });
        };
        let answer = self.ask(&request, turn).map_err(NetnsError::Broker)?;
        let answer = match timeout_at(deadline, answer).await {
            Ok(answer) => received(answer).map_err(NetnsError::Broker)?,
            Err(_) => return Err(slow()),
        };
        match answer {
            (Reply::Opened { id }, files) => Ok(Netns::new(Inside::received(id, files)?)),
            (Reply::Refused(refusal), _) => Err(refusal.about(path)),
            (Reply::Owner(_), _) => Err(NetnsError::Broker(io::Error::other("an answer to something else"))),
        }
    }

    /// The process that has a socket, as `NAME (PID)`; `None` when no process has it, or it cannot be told in time.
    pub async fn owner(&self, socket: &Listener) -> Option<String> {
        let look = async {
            let turn = self.turns.look().await;
            received(self.ask(&Request::Owner(socket.inode), turn)?.await)
        };
        match timeout(BRIEFLY, look).await {
            Ok(Ok((Reply::Owner(owner), _))) => owner,
            _ => None,
        }
    }

    /// Sends a request. `turn` is released when the broker's child for it has ended, whether anybody still waits for
    /// the answer or not.
    fn ask(&self, request: &Request, turn: Turn) -> io::Result<oneshot::Receiver<io::Result<Answer>>> {
        let (ours, theirs) = pair(SockFlag::SOCK_NONBLOCK)?;
        send(self.socket.as_fd(), request, &[theirs.as_fd()])?;
        drop(theirs);
        let socket = watched(ours)?;
        let (answer, waits) = oneshot::channel();
        tokio::spawn(async move {
            // The asker may have given up.
            let _ = answer.send(next(&socket).await);
            // The socket's other end is closed when the child is gone.
            while next(&socket).await.is_ok() {}
            drop(turn);
        });
        Ok(waits)
    }
}

/// The answer to a request, with its files.
type Answer = (Reply, Vec<OwnedFd>);

/// Receives the next message on `socket`; an error at its end.
async fn next(socket: &UnixStream) -> io::Result<Answer> {
    let received = socket.async_io(Interest::READABLE, || receive(socket.as_fd())).await?;
    received.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The answer, or an error when the task that waited for it was dropped with its runtime.
fn received(answer: Result<io::Result<Answer>, oneshot::error::RecvError>) -> io::Result<Answer> {
    answer.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_other_network_namespace_is_refused() {
        let broker = Broker::on_threads();
        for (path, want) in [
            ("/nonexistent", "No such file"),
            ("/etc/hostname", "not a network namespace"),
            ("/dev/null", "not a network namespace"),
            ("/proc/self/ns/mnt", "not a network namespace"),
            ("/proc/self/ns/net", "the device's own"),
        ] {
            let error = broker.open(&NetnsRef::Path(path.into())).await.expect_err(path).to_string();
            assert!(error.contains(want), "{path}: {error}");
        }
    }

    /// A broker that never answers. Its requests arrive in `theirs`, with the sockets for the answers.
    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_with_the_child_and_not_with_who_gave_up() {
        let (ours, theirs) = pair(SockFlag::empty()).expect("a pair of sockets");
        let broker = Broker::at(ours);
        let mut children = Vec::new();
        for n in 0..turns::NAMESPACES {
            let reference = NetnsRef::Path(format!("/{n}").into());
            let gave_up = timeout(Duration::from_millis(1), broker.open(&reference)).await;
            assert!(gave_up.is_err(), "nobody answers");
            let (_, files) = receive::<Request>(theirs.as_fd()).expect("received").expect("a request");
            children.push(files);
        }
        let one_more = NetnsRef::Path("/one-more".into());
        let error = broker.open(&one_more).await.expect_err("no turn is left");
        assert!(matches!(error, NetnsError::Busy { .. }), "{error}");
        let error = broker.open(&NetnsRef::Path("/0".into())).await.expect_err("it hangs").to_string();
        assert!(error.contains("not entered"), "{error}");
        children.remove(0);
        let answers = async {
            // The paused clock advances whenever the runtime is idle, so the test waits for something readable.
            let socket = watched(theirs).expect("watched");
            let request = socket.async_io(Interest::READABLE, || receive::<Request>(socket.as_fd())).await;
            let (request, files) = request.expect("received").expect("a request");
            assert_eq!(request, Request::Open(one_more.clone()));
            send(files[0].as_fd(), &Reply::Refused(message::Refusal::NotNetns), &[]).expect("sent");
        };
        let (opened, ()) = tokio::join!(broker.open(&one_more), answers);
        assert!(matches!(opened, Err(NetnsError::NotNetns { .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn a_broker_that_is_gone_is_noticed() {
        let (ours, theirs) = pair(SockFlag::empty()).expect("a pair of sockets");
        let broker = Broker::at(ours);
        let waits = tokio::time::timeout(Duration::from_millis(20), broker.ended()).await;
        assert!(waits.is_err(), "it is there");
        drop(theirs);
        broker.ended().await;
        let error = broker.open(&NetnsRef::Pid(1)).await.expect_err("nobody is there");
        assert!(matches!(error, NetnsError::Broker(_)) && !error.is_gone(), "{error}");
    }

    #[tokio::test]
    async fn the_owner_of_a_socket_is_named() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = held.local_addr().expect("bound").port();
        let all = super::super::listeners::holders(|l| l.addr.port() == port);
        let owner = Broker::on_threads().owner(all.first().expect("it is listed")).await.expect("an owner");
        assert!(owner.contains(&std::process::id().to_string()), "{owner}");
    }
}
