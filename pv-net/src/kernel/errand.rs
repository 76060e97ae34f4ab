//! Work whose time others decide: entering a namespace, or looking at the device's processes. It runs beside the
//! controller, which goes on with other commands and gets the result later.

use super::asking;
use super::broker::Broker;
use super::link::end_in;
use super::listeners::Listener;
use super::netlink::{LinkInfo, Net, NetError, Netns, in_time};
use super::netns::NetnsError;
use crate::model::{Asker, Attachment, NetnsRef, Terms};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Open a network namespace.
    Open(NetnsRef),
    /// Find out which process has a socket.
    Owner(Listener),
    /// Ask the network on a link for addresses.
    Ask(Asked),
    /// Give a lease back to the network on a link.
    GiveBack(Asked),
    /// Change an attached container's interface in its namespace.
    Inside {
        /// The namespace.
        reference: NetnsRef,
        /// The interface, whatever name the container has given it.
        attachment: Attachment,
        /// What is to be changed.
        change: Change,
    },
}

/// An interface that asks the network on a link for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Index of the link.
    pub link: u32,
    /// The interface, which need not exist yet.
    pub asker: Asker,
    /// What it has, or had before.
    pub known: Terms,
}

/// A change to a container's interface, inside its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its MTU, in bytes.
    Mtu(u32),
    /// Its largest segments (GSO and GRO), in bytes.
    Segments(u32),
}

/// The result of an errand.
#[derive(Debug)]
pub enum Brought {
    /// The namespace, or why it cannot be opened.
    Netns(NetnsRef, Result<Netns, NetnsError>),
    /// The process that has the socket, as `NAME (PID)`; `None` when no process has it, or it cannot be told in time.
    Owner(Listener, Option<String>),
    /// What the network has given, or why it has given nothing.
    Terms(Asked, Result<Terms, String>),
    /// The server was told that an interface needs its lease no more.
    GivenBack,
    /// Success, or why the interface could not be changed.
    Changed(Attachment, Change, Result<(), String>),
}

impl Errand {
    /// Does the work. Takes at most twice [`PATIENCE`](super::netns::PATIENCE), or [`asking::PATIENCE`] from its
    /// turn on.
    pub async fn run(self, broker: &Broker) -> Brought {
        match self {
            Self::Open(reference) => {
                let opened = broker.open(&reference).await;
                Brought::Netns(reference, opened)
            }
            Self::Owner(socket) => {
                let owner = broker.owner(&socket).await;
                Brought::Owner(socket, owner)
            }
            Self::Ask(asked) => {
                let terms = asking::ask_in_turn(asked.clone()).await;
                Brought::Terms(asked, terms)
            }
            Self::GiveBack(Asked { link, asker, known }) => {
                asking::give_back(link, &asker, &known);
                Brought::GivenBack
            }
            Self::Inside { reference, attachment, change } => {
                let done = inside(broker, &reference, &attachment, change).await;
                Brought::Changed(attachment, change, done)
            }
        }
    }
}

async fn inside(broker: &Broker, reference: &NetnsRef, attachment: &Attachment, change: Change) -> Result<(), String> {
    let netns = broker.open(reference).await.map_err(|e| e.to_string())?;
    let done = in_time(async {
        let here = Net::here()?;
        let Some(host) = here.link(attachment.host_if.as_str()).await? else { return Ok(()) };
        let Some(end) = end_in(&here, host.index, &netns).await? else { return Ok(()) };
        let net = netns.net()?;
        match net.link_at(end).await? {
            Some(link) => make(&net, &link, change).await,
            None => Ok(()),
        }
    });
    done.await.map_err(|e| e.to_string())
}

async fn make(net: &Net, link: &LinkInfo, change: Change) -> Result<(), NetError> {
    match change {
        Change::Mtu(bytes) => net.set_mtu(&link.name, link.index, bytes).await,
        Change::Segments(bytes) => {
            net.set_segment_bytes(&link.name, link.index, bytes).await;
            Ok(())
        }
    }
}

/// The results of all errands for one command.
#[derive(Debug, Default)]
pub struct Found(Vec<Brought>);

impl Found {
    /// Adds a result.
    pub fn add(&mut self, brought: Brought) {
        self.0.push(brought);
    }

    /// The namespace at `reference`, if an errand for it has run.
    #[must_use]
    pub fn netns(&self, reference: &NetnsRef) -> Option<Result<&Netns, &NetnsError>> {
        self.0.iter().find_map(|brought| match brought {
            Brought::Netns(at, netns) if at == reference => Some(netns.as_ref()),
            _ => None,
        })
    }

    /// What the network has given for `asked`, if an errand for it has run.
    #[must_use]
    pub fn terms(&self, asked: &Asked) -> Option<Result<&Terms, &String>> {
        self.0.iter().find_map(|brought| match brought {
            Brought::Terms(of, terms) if of == asked => Some(terms.as_ref()),
            _ => None,
        })
    }

    /// The process that has `socket`, if an errand for it has run.
    #[must_use]
    pub fn owner(&self, socket: &Listener) -> Option<Option<&str>> {
        self.0.iter().find_map(|brought| match brought {
            Brought::Owner(of, owner) if of == socket => Some(owner.as_deref()),
            _ => None,
        })
    }
}
