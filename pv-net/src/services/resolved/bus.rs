//! A connection to the system's message bus.

use crate::dbus::{Body, Call, Incoming, read};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the bus and systemd-resolved may take for one call.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest line of the handshake that is read, bytes.
const LONGEST_LINE: usize = 1024;

const BUS: &str = "org.freedesktop.DBus";

/// Why a call was not carried out.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The service does not run.
    NotRunning,
    /// The service has refused it, and says why.
    Refused(String),
    /// There is no such link any more, or it is another program's.
    NotOurs(String),
    /// The connection is lost.
    Lost(io::Error),
}

impl From<io::Error> for NotDone {
    fn from(e: io::Error) -> Self {
        Self::Lost(e)
    }
}

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    came: Vec<u8>,
    /// How many of the next bytes belong to a message that is skipped.
    skipped: usize,
    /// The watched service has begun or ended.
    has_changed: bool,
}

impl Bus {
    /// Connects, and watches for the beginning and end of `service`.
    pub async fn connect(socket: &Path, service: &str) -> Result<Self, NotDone> {
        let connect = async {
            let mut stream = UnixStream::connect(socket).await?;
            // The uid, its digits in hexadecimal.
            let uid = nix::unistd::geteuid().to_string();
            let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
            stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).await?;
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") && line.len() < LONGEST_LINE {
                line.push(stream.read_u8().await?);
            }
            if !line.starts_with(b"OK ") {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            stream.write_all(b"BEGIN\r\n").await?;
            Ok(stream)
        };
        let stream = timeout(PATIENCE, connect).await.map_err(|e| NotDone::Lost(e.into()))??;
        let mut bus = Self { stream, serial: 0, came: Vec::new(), skipped: 0, has_changed: false };
        let rule = format!("type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{service}'");
        for (member, signature, body) in
            [("Hello", "", Body::default()), ("AddMatch", "s", Body::default().text(&rule))]
        {
            let path = "/org/freedesktop/DBus";
            bus.call(&Call { destination: BUS, path, interface: BUS, member, signature, body }).await?;
        }
        bus.has_changed = false;
        Ok(bus)
    }

    /// Calls a method, and waits until it is carried out.
    pub async fn call(&mut self, call: &Call) -> Result<(), NotDone> {
        self.serial += 1;
        let number = self.serial;
        let done = async {
            self.stream.write_all(&call.to_bytes(number)).await?;
            loop {
                match self.next().await? {
                    Incoming::Done(serial) if serial == number => return Ok(()),
                    Incoming::Refused { serial, name, text } if serial == number => {
                        let is_gone = ["ServiceUnknown", "NameHasNoOwner"].iter().any(|end| name.ends_with(end));
                        let is_not_ours = ["NoSuchLink", "LinkBusy"].iter().any(|end| name.ends_with(end));
                        return Err(match (is_gone, is_not_ours) {
                            (true, _) => NotDone::NotRunning,
                            (_, true) => NotDone::NotOurs(text),
                            _ => NotDone::Refused(text),
                        });
                    }
                    signal @ Incoming::Signal { .. } => self.has_changed |= is_change(&signal),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, done).await.unwrap_or_else(|e| Err(NotDone::Lost(e.into())))
    }

    /// Waits until the watched service begins or ends.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.has_changed {
            self.has_changed = is_change(&self.next().await?);
        }
        self.has_changed = false;
        Ok(())
    }

    /// The next message. Nothing is lost when this is dropped before.
    async fn next(&mut self) -> io::Result<Incoming> {
        loop {
            let rest = self.skipped.min(self.came.len());
            self.came.drain(..rest);
            self.skipped -= rest;
            if let Some((message, len)) = read(&self.came).map_err(|_| io::ErrorKind::InvalidData)? {
                self.skipped = len;
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.came).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Whether the bus says that the watched service has begun or ended. Any program on the bus can send a signal of that name
/// to this connection; the sender's name is the bus's own word.
fn is_change(message: &Incoming) -> bool {
    matches!(message, Incoming::Signal { name, sender } if name == "NameOwnerChanged" && sender == BUS)
}
