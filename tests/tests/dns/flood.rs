//! Clients that flood, are silent, or send invalid messages.

use super::upstream::outside;
use super::*;

/// A server that never answers, a flood of names, silent connections, half a question, and invalid messages: no other
/// client has to wait, and the daemon's memory stays within its limits.
#[test]
fn one_container_does_not_stop_the_others() -> Result<()> {
    let (device, _host, _server, bad) = outside(&masqueraded())?;
    let good = device.attach("good", "internal")?;
    let gateway: SocketAddr = "10.0.3.1:53".parse()?;
    // More connections than a client may have, each with half a question or nothing.
    let streams = bad.ns.run(|| {
        let mut streams = Vec::new();
        for n in 0..400 {
            let Ok(mut stream) = TcpStream::connect_timeout(&gateway, LONG) else { continue };
            if n % 2 == 0 {
                let _ = stream.write_all(&[0, 40, 1, 2, 3]);
            }
            streams.push(stream);
        }
        Ok(streams)
    })?;
    ensure!(streams.len() > 300, "{} connections", streams.len());
    // Questions that no server answers, as fast as possible, and invalid messages.
    let socket = bad.ns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            for n in 0_u32.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let _ = socket.send_to(&question(1, &format!("never.{n}.example")), gateway);
                let _ = socket.send_to(&bytes("00010100000100000000000003"), gateway);
                std::thread::sleep(Duration::from_micros(100));
            }
        })
    };
    // The flood has reached its limits before another client asks, on any machine, and goes on until the end.
    eventually(SOON, || {
        let metrics = metrics(&device)?;
        for result in ["limited", "malformed"] {
            ensure!(metrics.contains(&format!("result=\"{result}\"")), "no {result} in {metrics}");
        }
        Ok(())
    })?;
    let mut took = good.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LONG))?;
        socket.connect(gateway)?;
        let mut took = Vec::new();
        for n in 0..300 {
            let begun = Instant::now();
            socket.send(&question(n, if n % 2 == 0 { "good.pv.local" } else { "long.example.net" }))?;
            let mut buffer = [0; 512];
            let len = socket.recv(&mut buffer)?;
            ensure!(buffer[..2] == n.to_be_bytes() && buffer[3] & 15 == 0, "{:?}", &buffer[..len]);
            took.push(begun.elapsed());
        }
        // Many questions in one connection, answered in any order.
        let mut stream = TcpStream::connect_timeout(&gateway, LONG)?;
        stream.set_read_timeout(Some(LONG))?;
        let asked: Vec<u8> = (0..40_u16)
            .flat_map(|n| {
                let question = question(n, "good.pv.local");
                [&(question.len() as u16).to_be_bytes()[..], &question].concat()
            })
            .collect();
        stream.write_all(&asked)?;
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 40 {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut answer)?;
            seen.insert([answer[0], answer[1]]);
        }
        Ok(took)
    });
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().expect("no panic");
    let took = took.as_mut().map_err(|e| anyhow::anyhow!("{e:#}: {}", device.log()))?;
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("answers to others: median {median:?}, worst {worst:?}");
    // A client that waited for the flood's questions would wait for seconds. The usual time of an answer is measured by
    // a benchmark.
    ensure!(median < harness::patience(Duration::from_millis(200)), "median {median:?}, worst {worst:?}");
    drop(streams);
    let status = fs::read_to_string(format!("/proc/{}/status", device.daemon()?.pid()))?;
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).context("VmRSS")?;
    println!("{rss}");
    Ok(())
}

/// Ten thousand connections that ask nothing, of more containers than it takes to have all connections that the server
/// allows: others are answered meanwhile, by TCP too, and the daemon has a bounded number of open files.
#[test]
fn idle_connections_take_nothing_from_others() -> Result<()> {
    const BAD: usize = 18;
    const EACH: usize = 560;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // Where fewer files may be open, as many connections as there can be.
    let each = EACH.min(usize::try_from(most)?.saturating_sub(2000) / BAD).max(40);
    let device = Device::started(&two_pools())?;
    let good = device.attach("good", "internal")?;
    let bad: Vec<Container> = (0..BAD).map(|n| device.attach(&format!("bad{n}"), "internal")).collect::<Result<_>>()?;
    let gateway: SocketAddr = "10.0.3.1:53".parse()?;
    let files = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", device.daemon()?.pid()))?.count());
    let before = files()?;
    let mut streams = Vec::new();
    for container in &bad {
        streams.extend(container.ns.run(|| {
            Ok((0..each).filter_map(|_| TcpStream::connect_timeout(&gateway, LONG).ok()).collect::<Vec<_>>())
        })?);
    }
    ensure!(streams.len() > BAD * each * 9 / 10, "{} connections", streams.len());
    let asked = question(7, "good.pv.local");
    let took = good.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LONG))?;
        socket.connect(gateway)?;
        let mut took = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            socket.send(&asked)?;
            socket.recv(&mut [0; 512])?;
            let mut stream = TcpStream::connect_timeout(&gateway, LONG)?;
            stream.set_read_timeout(Some(LONG))?;
            stream.write_all(&[&(asked.len() as u16).to_be_bytes()[..], &asked].concat())?;
            let mut head = [0; 14];
            stream.read_exact(&mut head).context("by TCP")?;
            ensure!(head[2..4] == asked[..2] && head[5] & 15 == 0, "{head:?}");
            took.push(begun.elapsed());
        }
        took.sort();
        Ok(took)
    })?;
    let (now, middle) = (files()?, took[took.len() / 2]);
    println!(
        "{} idle connections: {now} files, before {before}; an answer by UDP and one by TCP {middle:?}",
        streams.len()
    );
    // As many as the server allows to all clients, and some that are being closed.
    ensure!(now < before + 512 + 128, "{now} open files, {before} before");
    Ok(())
}
