//! What is told, and taken back, by a bus made for the test.

use super::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

const METHODS: [&str; 5] = ["Hello", "AddMatch", "SetLinkDNS", "SetLinkDefaultRoute", "RevertLink"];

/// A bus whose programs carry out each call; it tells which, with the link where there is one. What comes by the second
/// channel is sent to whoever is connected.
fn bus(socket: &Path) -> (mpsc::UnboundedReceiver<(&'static str, u32)>, mpsc::UnboundedSender<Vec<u8>>) {
    let listener = UnixListener::bind(socket).expect("bound");
    let (called, calls) = mpsc::unbounded_channel();
    let (signals, mut sent) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let (read, mut write) = stream.split();
            let mut read = BufReader::new(read);
            let mut line = Vec::new();
            read.read_until(b'\n', &mut line).await.expect("who it is");
            write.write_all(b"OK 1234\r\n").await.expect("sent");
            read.read_until(b'\n', &mut line).await.expect("the begin");
            loop {
                tokio::select! {
                    came = message(&mut read) => {
                        let Ok(message) = came else { break };
                        let name = METHODS.iter().find(|name| has(&message, name));
                        let link = message[message.len() - body_len(&message)..].first_chunk();
                        let _ = name.map(|name| called.send((*name, link.map_or(0, |link| u32::from_le_bytes(*link)))));
                        let reply = [&[b'l', 2, 1, 1, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 1, b'u', 0], &message[8..12]];
                        write.write_all(&reply.concat()).await.expect("sent");
                    }
                    Some(signal) = sent.recv() => write.write_all(&signal).await.expect("sent"),
                }
            }
        }
    });
    (calls, signals)
}

fn body_len(message: &[u8]) -> usize {
    message[4].into()
}

fn has(message: &[u8], name: &str) -> bool {
    let text = format!("{name}\0");
    message.windows(text.len()).any(|part| part == text.as_bytes())
}

async fn message(read: &mut BufReader<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 16];
    read.read_exact(&mut message).await?;
    let len = (16 + usize::from(message[12])).next_multiple_of(8) + body_len(&message);
    message.resize(len, 0);
    read.read_exact(&mut message[16..]).await?;
    Ok(message)
}

fn told() -> Told {
    Told { mac: Mac([2, 0, 0, 0, 0, 1]), server: [127, 0, 0, 153].into(), domain: "pv.local".to_owned() }
}

/// What a daemon before this one has told, or this one on a connection that is lost now, is taken back all the same.
#[tokio::test]
async fn what_was_told_is_taken_back_some_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let (socket, file) = (dir.path().join("bus"), dir.path().join("resolved.json"));
    std::fs::write(&file, "[9]").expect("written");
    let mut owed = Owed::load(file.clone()).await;
    let (mut all, mut to) = (BTreeMap::new(), None);
    let wanted = BTreeMap::from([(7, told())]);
    let lost = follow(&mut to, &socket, &wanted, &mut all, &mut owed).await;
    assert!(matches!(lost, Err(NotDone::Lost(_))) && owed.links().eq([9]), "there is no bus");
    let (mut calls, _signals) = bus(&socket);
    follow(&mut to, &socket, &wanted, &mut all, &mut owed).await.expect("told");
    let mut said = Vec::new();
    while let Ok(call) = calls.try_recv() {
        said.push(call);
    }
    let want = [("Hello", 0), ("AddMatch", 0), ("RevertLink", 9), ("SetLinkDNS", 7), ("SetLinkDefaultRoute", 7)];
    assert_eq!(said.iter().map(|(name, _)| *name).collect::<Vec<_>>(), want.map(|(name, _)| name));
    assert_eq!(said[2..], want[2..]);
    assert!(Owed::load(file.clone()).await.links().eq([7]));
    // The connection is lost, and with it what is known of it.
    (to, all) = (None, BTreeMap::new());
    follow(&mut to, &socket, &BTreeMap::new(), &mut all, &mut owed).await.expect("taken back");
    assert_eq!([calls.recv().await, calls.recv().await, calls.recv().await][2], Some(("RevertLink", 7)));
    assert!(owed.is_empty() && Owed::load(file).await.is_empty());
}

/// A signal with this name and sender.
fn signal(name: &str, sender: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (number, text) in [(3, name), (7, sender)] {
        fields.resize(usize::next_multiple_of(fields.len(), 8), 0);
        fields.extend([number, 1, b's', 0, text.len() as u8, 0, 0, 0]);
        fields.extend([text.as_bytes(), &[0]].concat());
    }
    let mut message = [&[b'l', 4, 1, 1, 0, 0, 0, 0, 9, 0, 0, 0, fields.len() as u8, 0, 0, 0], &fields[..]].concat();
    message.resize(message.len().next_multiple_of(8), 0);
    message
}

#[tokio::test]
async fn only_the_bus_says_that_a_service_has_begun() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("bus");
    let (_calls, signals) = bus(&socket);
    let Ok(mut bus) = Bus::connect(&socket, SERVICE).await else { panic!("not connected") };
    // Another program's signal, and a message that is longer than any that is kept.
    let mut long = signal("NameOwnerChanged", ":1.5");
    long[6] = 2;
    long.resize(long.len() + (2 << 16), 0);
    for message in [signal("NameOwnerChanged", ":1.5"), long, signal("Other", "org.freedesktop.DBus")] {
        signals.send(message).expect("sent");
    }
    let quiet = tokio::time::timeout(Duration::from_millis(200), bus.changed()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    signals.send(signal("NameOwnerChanged", "org.freedesktop.DBus")).expect("sent");
    bus.changed().await.expect("the service has begun");
}
