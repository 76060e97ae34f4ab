//! Servers that are asked by DNS over TLS (RFC 7858), in the strict profile of RFC 8310: a server whose certificate is not
//! for its configured name is not asked, and nothing is ever sent without TLS instead.

mod connection;
mod trust;

pub use trust::Distrust;

use crate::model::NameServer;
use connection::{Question, run};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
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

/// The connections to servers with TLS, one to each.
#[derive(Debug, Default)]
pub(super) struct Connections {
    trust: Arc<Trust>,
    open: Mutex<HashMap<NameServer, mpsc::Sender<Question>>>,
    distrusted: watch::Sender<Distrusted>,
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
        self.note(server, &answer);
        answer
    }

    /// Changes to the servers that cannot be trusted.
    pub fn distrusted(&self) -> watch::Receiver<Distrusted> {
        self.distrusted.subscribe()
    }

    /// Forgets all servers but those that are still configured.
    pub fn retain(&self, is_configured: impl Fn(&NameServer) -> bool) {
        self.open().retain(|server, _| is_configured(server));
        self.distrusted.send_if_modified(|all| {
            let before = all.len();
            all.retain(|server, _| is_configured(server));
            all.len() != before
        });
    }

    /// Each change under the lock is complete, so the map is valid even after a panic.
    fn open(&self) -> MutexGuard<'_, HashMap<NameServer, mpsc::Sender<Question>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
        open.retain(|_, questions| !questions.is_closed());
        let there = open.get(server).filter(|there| ended.is_none_or(|ended| !ended.same_channel(there)));
        if let Some(there) = there {
            return (there.clone(), false);
        }
        let (sender, questions) = mpsc::channel(QUEUE);
        let ca_file = ca_file.map(Path::to_owned);
        tokio::spawn(run(server.address, name.clone(), self.trust.clone(), ca_file, questions));
        open.insert(server.clone(), sender.clone());
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
