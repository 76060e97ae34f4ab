//! What is told to those who watch.

use super::*;
use crate::bus::{Heard, Listener};
use crate::dns::metrics::Ended;
use crate::dns::watched::Watched;
use crate::dns::{Asker, Dns, Exchange};

async fn told(listener: &mut Listener<Arc<Exchange>>) -> Arc<Exchange> {
    match listener.next().await {
        Some(Heard::Message(exchange)) => exchange,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_large_answer_is_shown_in_part() {
    let watched = Watched::default();
    let mut listener = watched.listen();
    let zone = Zone::new(&snapshot(&[]));
    let address = "10.0.3.2".parse().expect("address");
    let begun = watched.begin(zone.client(0, address).expect("a client"), address, false).expect("somebody watches");
    let asked = question("www.example", RecordType::A);
    for (records, shown, why) in [
        (32, 32, None),
        (60, 32, Some("28 more records are not shown".to_owned())),
        (200, 0, Some(format!("{} bytes, which are not shown", 12 + 17 + 200 * 16))),
    ] {
        let mut answer = asked[..asked.len() - 11].to_vec();
        (answer[2], answer[7], answer[11]) = (0x81, records, 0);
        for n in 0..records {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, n]);
        }
        watched.tell(&begun, &zone, &asked, &answer, Ended::Upstream, None);
        let said = told(&mut listener).await.shown();
        assert_eq!((&*said.status, said.records.len(), said.why), ("NOERROR", shown, why), "{records}");
    }
}

#[tokio::test]
async fn who_watches_is_told_what_was_asked_and_answered() {
    let dns = Arc::new(Dns::new("/nowhere".into()));
    dns.set_zone(Zone::new(&snapshot(&[])));
    let zone = dns.zone();
    let asker = |address: &str, is_datagram| {
        let address = address.parse().expect("address");
        Asker { client: zone.client(0, address).expect("a client"), address, is_datagram }
    };
    let mut out = Vec::new();
    let mut ask = |asker: Asker, message: &[u8]| drop(dns.now(&zone, asker, message, &mut out));
    let asked = question("db.pv.test", RecordType::A);
    // Nobody watches.
    ask(asker("10.0.3.2", true), &asked);
    let mut listener = dns.watch();
    ask(asker("10.0.3.2", true), &asked);
    ask(asker("fd00:3::2", false), &question("nobody.pv.test", RecordType::AAAA));
    ask(asker("10.0.3.99", true), &asked[..asked.len() - 1]);
    let first = told(&mut listener).await;
    assert_eq!(first.asked(), Some(("db.pv.test".to_owned(), "A".to_owned())));
    assert_eq!((first.ended, first.is_datagram, first.server.clone()), (Ended::Own, true, None));
    let shown = first.shown();
    assert_eq!((&*shown.status, &*shown.records[0].data), ("NOERROR", "10.0.3.3"));
    assert_eq!(first.pool.as_ref().map(|pool| pool.as_str()), Some("internal"));
    let second = told(&mut listener).await;
    assert_eq!((second.ended, second.is_datagram, &*second.shown().status), (Ended::NoName, false, "NXDOMAIN"));
    assert_eq!((second.whose, second.address), (first.whose, "fd00:3::2".parse().expect("address")));
    let third = told(&mut listener).await;
    assert_eq!((third.ended, third.asked(), &*third.shown().status), (Ended::Malformed, None, "FORMERR"));
    assert_ne!(third.whose, first.whose);
    // Whoever reads too slowly is told how much was missed.
    (0..2000).for_each(|_| ask(asker("10.0.3.2", true), &asked));
    assert!(
        matches!(listener.next().await, Some(Heard::Missed(n)) if n == dns.missed() && n > 900),
        "{}",
        dns.missed()
    );
}
