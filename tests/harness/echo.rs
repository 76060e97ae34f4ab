//! Echo servers and clients inside the test's process; they compare every byte.

use crate::{Namespace, patience};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// An echo server for TCP and UDP on one port: each connection and datagram is answered with the client's address as
/// the server sees it, a newline, and what was sent. It ends with the process.
///
/// # Errors
/// When the server cannot bind the port.
pub fn serve(ns: &Namespace, addr: IpAddr, port: u16) -> Result<()> {
    let at = SocketAddr::new(addr, port);
    let (listener, socket) = ns.run(|| {
        let listener = TcpListener::bind(at).with_context(|| at.to_string())?;
        Ok((listener, UdpSocket::bind(at).with_context(|| at.to_string())?))
    })?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0u8; 65_536];
        while let Ok((n, client)) = socket.recv_from(&mut buffer) {
            let answer = [format!("{}\n", plain(client)).as_bytes(), &buffer[..n]].concat();
            // A client that hung up has no use for the answer.
            let _ = socket.send_to(&answer, client);
        }
    });
    Ok(())
}

fn plain(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let client = plain(stream.peer_addr()?);
    stream.write_all(format!("{client}\n").as_bytes())?;
    let mut buffer = vec![0u8; 65_536];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n])?;
    }
}

/// Sends `data` over TCP, reads the echo, compares all of it; gives the client address that the server saw.
///
/// # Errors
/// When there is no connection, or the data came back different.
pub fn tcp(ns: &Namespace, server: SocketAddr, data: &[u8]) -> Result<SocketAddr> {
    let mut stream = connect(ns, server)?;
    let mut seen = Vec::new();
    let mut byte = [0u8];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the server's first line")?;
        seen.push(byte[0]);
    }
    let mut writer = stream.try_clone()?;
    let echoed = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            writer.write_all(data)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        let mut echoed = Vec::with_capacity(data.len());
        stream.read_to_end(&mut echoed).context("the echo")?;
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        anyhow::Ok(echoed)
    })?;
    ensure!(echoed == data, "{} bytes sent, {} came back, or different ones", data.len(), echoed.len());
    Ok(String::from_utf8(seen)?.trim().parse()?)
}

/// A TCP connection out of `ns`.
///
/// # Errors
/// When there is none within [`PATIENCE`].
pub fn connect(ns: &Namespace, server: SocketAddr) -> Result<TcpStream> {
    ns.run(|| {
        let stream = TcpStream::connect_timeout(&server, patience(PATIENCE)).with_context(|| server.to_string())?;
        stream.set_read_timeout(Some(patience(PATIENCE)))?;
        stream.set_write_timeout(Some(patience(PATIENCE)))?;
        Ok(stream)
    })
}

/// Sends `data` in one datagram, compares the echo; gives the client address that the server saw.
///
/// # Errors
/// When no answer comes, or a different one.
pub fn udp(ns: &Namespace, server: SocketAddr, data: &[u8]) -> Result<SocketAddr> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = ns.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(patience(PATIENCE)))?;
        Ok(socket)
    })?;
    let mut buffer = vec![0u8; 65_536];
    socket.send(data)?;
    let n = socket.recv(&mut buffer).with_context(|| format!("no answer of {server}"))?;
    let end = buffer[..n].iter().position(|b| *b == b'\n').context("the server's first line")?;
    ensure!(&buffer[end + 1..n] == data, "{} bytes came back for {}", n - end - 1, data.len());
    Ok(std::str::from_utf8(&buffer[..end])?.parse()?)
}
