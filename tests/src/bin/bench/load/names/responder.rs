//! A server that gives one answer to all questions, with one UDP socket: the most that one socket can do. Also the server
//! beyond the device, which answers at once.

use super::message::Message;
use crate::load::in_namespace;
use anyhow::{Context, Result};
use nix::unistd::gettid;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long it may take until the server's threads end.
const TICK: Duration = Duration::from_millis(100);

/// The server; it ends when dropped.
pub struct Responder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    ids: Vec<u32>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicU64,
    ends: AtomicBool,
}

impl Responder {
    /// Answers on `at` in the namespace with `address`.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn start(ns: &Path, at: SocketAddrV4, address: Ipv4Addr) -> Result<Self> {
        let (socket, listener) = in_namespace(ns, || {
            let socket = UdpSocket::bind(at).with_context(|| at.to_string())?;
            socket.set_read_timeout(Some(TICK))?;
            Ok((socket, TcpListener::bind(at).with_context(|| at.to_string())?))
        })?;
        listener.set_nonblocking(false)?;
        nix::sys::socket::setsockopt(
            &listener,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(0, TICK.subsec_micros().into()),
        )?;
        let shared = Arc::<Shared>::default();
        let (say, ids) = mpsc::channel();
        let (own, told) = (shared.clone(), say.clone());
        let datagrams = std::thread::spawn(move || {
            let _ = told.send(gettid().as_raw() as u32);
            let mut question = [0; 512];
            while !own.ends.load(Ordering::Relaxed) {
                let Ok((len, client)) = socket.recv_from(&mut question) else { continue };
                own.asked.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = Message::answer(&question[..len], address) {
                    let _ = socket.send_to(answer.bytes(), client);
                }
            }
        });
        let own = shared.clone();
        let streams = std::thread::spawn(move || {
            let _ = say.send(gettid().as_raw() as u32);
            while !own.ends.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    own.asked.fetch_add(1, Ordering::Relaxed);
                    let _ = converse(stream, address);
                }
            }
        });
        let ids = ids.iter().take(2).collect();
        Ok(Self { shared, threads: vec![datagrams, streams], ids })
    }

    /// How many questions have come.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Its threads.
    pub fn threads(&self) -> &[u32] {
        &self.ids
    }
}

/// Answers one question.
fn converse(mut stream: TcpStream, address: Ipv4Addr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    let mut question = [0; 512];
    let read = stream.read(&mut question)?;
    let answer = Message::answer(question.get(2..read).unwrap_or_default(), address);
    let Some(answer) = answer else { return Ok(()) };
    let len = answer.bytes().len() as u16;
    stream.write_all(&[&len.to_be_bytes(), answer.bytes()].concat())
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
