//! Servers that are asked by DNS over TLS (RFC 7858), in the strict profile of RFC 8310: a server whose certificate is not
//! for its configured name is not asked, and nothing is ever sent without TLS instead.

mod connection;
mod trust;

pub use connection::frame;
pub use trust::Distrust;

use crate::model::NameServer;
use connection::{Question, run};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use trust::Trust;

/// Questions that wait to be sent on a connection.
const QUEUE: usize = 64;
/// For how long a server is not tried again that could not be trusted. Each try is a handshake.
const REST: Duration = Duration::from_secs(1);

/// Why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The server cannot be trusted.
    #[error("{0}")]
    Distrusted(Distrust),
    /// An error of the network.
    #[error("{0}")]
    Network(io::ErrorKind),
    /// The connection was closed before the answer came.
    #[error("the connection was closed")]
    Closed,
    /// The server does not answer.
    #[error("no answer came in time")]
    Late,
}

/// The servers that could not be trusted when they were last asked: why, and when.
pub type Distrusted = BTreeMap<NameServer, (Distrust, Instant)>;

/// An open connection.
#[derive(Debug)]
struct Open {
    questions: mpsc::Sender<Question>,
    /// The file with the authorities that are trusted on it; the system's unless given.
    ca_file: Option<PathBuf>,
}

/// The connections to servers with TLS, one to each.
#[derive(Debug, Default)]
pub(super) struct Connections {
    trust: Arc<Trust>,
    open: Mutex<HashMap<NameServer, Open>>,
    distrusted: watch::Sender<Distrusted>,
    /// The configured file with the authorities.
    ca_file: Mutex<Option<PathBuf>>,
}

impl Connections {
    /// The server's answer to `message`, with the id of `message`. `ca_file` has the certificates of authorities; it is the
    /// system's unless given.
    ///
    /// # Errors
    /// When the server cannot be reached or trusted, or does not answer.
    pub async fn ask(
        &self,
        server: &NameServer,
        name: &Arc<str>,
        ca_file: Option<&Path>,
        message: &[u8],
    ) -> Result<Vec<u8>, Lost> {
        if let Some((why, at)) = self.distrusted.borrow().get(server)
            && at.elapsed() < REST
        {
            return Err(Lost::Distrusted(*why));
        }
        let (questions, is_new) = self.connection(server, name, ca_file, None);
        let mut answer = put(&questions, message).await;
        // The server may close an idle connection at any time. A question that was on its way is asked again (RFC 7766
        // section 6.2.4).
        if answer == Err(Lost::Closed) && !is_new {
            let (questions, _) = self.connection(server, name, ca_file, Some(&questions));
            answer = put(&questions, message).await;
        }
        // What was found out with other authorities says nothing about the present ones.
        if self.ca_file().as_deref() == ca_file {
            self.note(server, &answer);
        }
        answer
    }

    /// Changes to the servers that cannot be trusted.
    pub fn distrusted(&self) -> watch::Receiver<Distrusted> {
        self.distrusted.subscribe()
    }

    /// Forgets all servers but those that are still configured. Whom the authorities of another file than `ca_file` were
    /// to vouch for is forgotten, too: its connection asks nothing more, and it may be trusted now.
    pub fn retain(&self, ca_file: Option<&Path>, is_configured: impl Fn(&NameServer) -> bool) {
        self.open().retain(|server, open| is_configured(server) && open.ca_file.as_deref() == ca_file);
        let is_same = std::mem::replace(&mut *self.ca_file(), ca_file.map(Path::to_owned)).as_deref() == ca_file;
        self.distrusted.send_if_modified(|all| {
            let before = all.len();
            all.retain(|server, _| is_configured(server) && is_same);
            all.len() != before
        });
    }

    /// Each change under the lock is complete, so the map is valid even after a panic.
    fn open(&self) -> MutexGuard<'_, HashMap<NameServer, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ca_file(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.ca_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open connection to the server, unless it is `ended`; else a new one, which the second value says.
    fn connection(
        &self,
        server: &NameServer,
        name: &Arc<str>,
        ca_file: Option<&Path>,
        ended: Option<&mpsc::Sender<Question>>,
    ) -> (mpsc::Sender<Question>, bool) {
        let mut open = self.open();
        open.retain(|_, open| !open.questions.is_closed());
        let there = open.get(server).filter(|there| there.ca_file.as_deref() == ca_file).map(|there| &there.questions);
        if let Some(there) = there.filter(|there| ended.is_none_or(|ended| !ended.same_channel(there))) {
            return (there.clone(), false);
        }
        let (sender, questions) = mpsc::channel(QUEUE);
        let ca_file = ca_file.map(Path::to_owned);
        tokio::spawn(run(server.address, name.clone(), self.trust.clone(), ca_file.clone(), questions));
        open.insert(server.clone(), Open { questions: sender.clone(), ca_file });
        (sender, true)
    }

    fn note(&self, server: &NameServer, answer: &Result<Vec<u8>, Lost>) {
        let why = match answer {
            Ok(_) if !self.distrusted.borrow().contains_key(server) => return,
            Ok(_) => None,
            Err(Lost::Distrusted(why)) => Some(*why),
            // It was not reached, so nothing is new about whether it can be trusted.
            Err(_) => return,
        };
        self.distrusted.send_if_modified(|all| {
            let before = match why {
                Some(why) => all.insert(server.clone(), (why, Instant::now())),
                None => all.remove(server),
            };
            before.map(|(why, _)| why) != why
        });
    }
}

/// Puts a question, and waits for its answer.
async fn put(questions: &mpsc::Sender<Question>, message: &[u8]) -> Result<Vec<u8>, Lost> {
    let (answer, answered) = oneshot::channel();
    let question = Question { message: message.to_vec(), answer };
    questions.send(question).await.map_err(|_| Lost::Closed)?;
    answered.await.unwrap_or(Err(Lost::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_authorities_mean_other_connections() {
        let all = Connections::default();
        let server = NameServer::plain(([127, 0, 0, 1], 1).into());
        let [one, two] = ["/one", "/two"].map(|path| Some(Path::new(path)));
        let connect = |ca_file| all.connection(&server, &"dns.example".into(), ca_file, None);
        all.retain(one, |_| true);
        assert!(connect(one).1 && !connect(one).1);
        assert!(connect(two).1, "the one before trusts others");
        all.note(&server, &Err(Lost::Distrusted(Distrust::UnknownAuthority)));
        all.retain(one, |_| true);
        assert_eq!((all.open().len(), all.distrusted().borrow().len()), (0, 1));
        assert!(connect(one).1);
        all.retain(two, |_| true);
        assert_eq!((all.open().len(), all.distrusted().borrow().len()), (0, 0));
        // A question that began before asks the authorities of that time, which is no news about the present ones.
        let lost = Err(Lost::Distrusted(Distrust::NoAuthorities));
        assert_eq!(all.ask(&server, &"dns.example".into(), one, b"").await, lost);
        assert!(all.distrusted().borrow().is_empty());
        assert_eq!(all.ask(&server, &"dns.example".into(), two, b"").await, lost);
        assert_eq!(all.distrusted().borrow().len(), 1);
    }
}
