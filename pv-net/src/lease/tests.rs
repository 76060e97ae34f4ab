//! The lease book with real files, and its behaviour when the disk fails.

mod power_cut;

use super::journal::load;
use super::*;
use crate::ipam::store::{self, State};
use crate::ipam::{ClientId, ClientLease, Ipam, Lease, LeaseKey};
use crate::model::{Mac, Pool, fixture};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pool with 65,000 addresses of each family.
fn pool() -> Pool {
    fixture::pool("internal", Some(("10.3.0.0/16", "10.3.0.1")), Some(("fd00:3::/64", "fd00:3::1")))
}

fn key(container: &str) -> LeaseKey {
    LeaseKey {
        pool: pool().name,
        container: container.parse().expect("name"),
        interface: "eth0".parse().expect("name"),
    }
}

fn wanted(container: &str, ipv4: Option<[u8; 4]>) -> Step {
    Step::Assign(Wanted { pool: pool(), key: key(container), ipv4: ipv4.map(Into::into), ipv6: None, mac: None })
}

async fn assign(book: &LeaseHandle, container: &str) -> Result<Arc<Lease>, LeaseError> {
    Ok(book.change(vec![wanted(container, None)]).await?.remove(0))
}

fn opened(dir: &Path) -> LeaseHandle {
    let (book, conditions) = open(dir, None).expect("opened");
    assert_eq!(conditions, Vec::<String>::new());
    book
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn what_was_answered_is_loaded_and_only_root_can_read_it() {
    let dir = dir();
    let book = opened(dir.path());
    assert!(!dir.path().join("leases").exists(), "nothing was asked for");
    let a = assign(&book, "a").await.expect("free");
    let b = assign(&book, "b").await.expect("free");
    assert_eq!(assign(&book, "a").await.expect("sticky"), a);
    book.change(vec![Step::Release(key("b")), Step::Release(key("nobody"))]).await.expect("released");
    assert_eq!(*book.all(), *std::slice::from_ref(&a), "who was answered sees it");
    assert_eq!(book.of(&a.key.container), std::slice::from_ref(&a));
    let mode = fs::metadata(dir.path().join("leases")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(book);
    let again = opened(dir.path());
    assert_eq!(*again.all(), [a]);
    assert_ne!(assign(&again, "c").await.expect("free").ipv4, b.ipv4, "the cursor went on");
}

#[tokio::test]
async fn steps_are_made_together_or_not_at_all() {
    let dir = dir();
    let book = opened(dir.path());
    let before = [assign(&book, "a").await.expect("free"), assign(&book, "b").await.expect("free")];
    let file = fs::read(dir.path().join("leases")).expect("read");
    let taken = Some([10, 3, 0, 3]);
    let steps = vec![Step::Release(key("a")), wanted("c", None), wanted("d", taken)];
    assert!(matches!(book.change(steps).await, Err(LeaseError::Ipam(_))));
    let clash = Lease { key: key("e"), ..Lease::clone(&before[0]) };
    let held = book.change(vec![wanted("c", None), Step::Learn(Arc::new(clash))]).await;
    assert!(matches!(held, Err(LeaseError::Held { holder, .. }) if holder == before[0].key));
    assert_eq!(*book.all(), before);
    assert_eq!(fs::read(dir.path().join("leases")).expect("read"), file);
}

#[tokio::test]
async fn what_an_attach_did_is_undone() {
    let dir = dir();
    let book = opened(dir.path());
    let (a, b) = (assign(&book, "a").await.expect("free"), assign(&book, "b").await.expect("free"));
    let before = book.all();
    // The two exchange their addresses, and a third lease is added.
    book.change(vec![Step::Release(a.key.clone()), Step::Release(b.key.clone())]).await.expect("released");
    let octets = |lease: &Lease| lease.ipv4.map(|a| a.octets());
    book.change(vec![wanted("a", octets(&b)), wanted("b", octets(&a)), wanted("c", None)]).await.expect("free");
    assert_ne!(before, book.all());
    book.change(undo(&before, &book.all())).await.expect("undone");
    assert_eq!(before, book.all());
    assert!(undo(&before, &book.all()).is_empty());
    assert_eq!(*opened(dir.path()).all(), *before);
}

#[tokio::test]
async fn a_reserved_address_is_for_its_holder() {
    let dir = dir();
    let book = opened(dir.path());
    let first = IpAddr::from([10, 3, 0, 2]);
    assert_eq!(book.reserve(vec![(first, key("declared"))]).await.expect("there"), [None]);
    let a = assign(&book, "a").await.expect("free");
    assert_ne!(a.ipv4.map(IpAddr::V4), Some(first));
    let own = book.change(vec![wanted("declared", Some([10, 3, 0, 2]))]).await.expect("its own");
    assert_eq!(own[0].ipv4.map(IpAddr::V4), Some(first));
    assert_eq!(book.reserve(vec![(first, key("late"))]).await.expect("there"), [Some(key("declared"))]);
}

fn client(number: u8, address: &str) -> Arc<ClientLease> {
    let mac = Mac([2, 0, 0, 0, 1, number]);
    let (client, address) = (ClientId::of_mac(mac), address.parse().expect("address"));
    Arc::new(ClientLease {
        pool: pool().name,
        client,
        address,
        mac: Some(mac),
        hostname: None,
        port: None,
        expires: 60,
    })
}

/// A client that gives itself a name, by a lease that lasts a while or is over.
fn named(pool: &str, number: u8, address: &str, is_live: bool) -> Arc<ClientLease> {
    let expires = if is_live { unix_time() + 3600 } else { 60 };
    let pool = pool.parse().expect("name");
    let hostname = Some("printer".to_owned());
    Arc::new(ClientLease { pool, hostname, expires, ..ClientLease::clone(&client(number, address)) })
}

/// Nobody takes the name of a machine that is there: not in the other family, not in another pool, and not because it had
/// the name before, or says that it is that machine.
#[tokio::test]
async fn a_name_is_its_machines_as_long_as_that_has_a_lease() {
    let dir = dir();
    let book = opened(dir.path());
    let lend = async |lease: &Arc<ClientLease>| {
        book.change(vec![Step::Lend(lease.clone())]).await.expect("free");
        let all = book.clients().all();
        all.into_iter().find(|l| l.address == lease.address).expect("lent").hostname.clone()
    };
    let name = Some("printer".to_owned());
    let v4 = named("internal", 1, "10.3.9.1", true);
    assert_eq!(lend(&v4).await, name);
    assert_eq!(lend(&named("internal", 2, "fd00:3::2", true)).await, None, "the other family");
    assert_eq!(lend(&named("another", 3, "10.4.9.3", true)).await, None, "another pool");
    let same =
        ClientLease { client: v4.client.clone(), ..ClientLease::clone(&named("internal", 4, "fd00:3::4", true)) };
    assert_eq!(lend(&Arc::new(same)).await, None, "another machine that sends the same identifier");
    assert_eq!(lend(&named("internal", 1, "fd00:3::1", true)).await, name, "the same machine");
    // It leaves, and another has the name; then it comes back.
    for over in [named("internal", 1, "10.3.9.1", false), named("internal", 1, "fd00:3::1", false)] {
        lend(&over).await;
    }
    assert_eq!(lend(&named("internal", 2, "fd00:3::2", true)).await, name);
    assert_eq!(lend(&v4).await, None, "it was away");
    // Leases that are over are remembered, and hide none that is not.
    for number in 10..20 {
        assert_eq!(lend(&named("internal", number, &format!("fd00:3::{number}"), false)).await, name, "over at once");
    }
    assert_eq!(lend(&named("internal", 3, "fd00:3::99", true)).await, None, "the other still has it");
    // The file says the same.
    drop(book);
    let again = opened(dir.path()).clients().all();
    let holders: Vec<_> = again.iter().filter(|l| l.hostname.is_some() && !l.is_over(unix_time())).collect();
    assert!(holders.len() == 1 && holders[0].address == "fd00:3::2".parse::<IpAddr>().expect("address"), "{again:?}");
}

#[tokio::test]
async fn leases_of_clients_are_as_durable_as_those_of_containers() {
    let dir = dir();
    let book = opened(dir.path());
    let mut seen = book.clients();
    let (one, two) = (client(1, "10.3.9.1"), client(2, "10.3.9.2"));
    let six = client(1, "fd00:3::9");
    book.change([&one, &two, &six].map(|lease| Step::Lend(lease.clone())).to_vec()).await.expect("free");
    seen.changed().await.expect("the book is there");
    assert_eq!(seen.all(), [one.clone(), six.clone(), two.clone()]);
    // Two for one address: none of the steps is made.
    let taken = client(3, "10.3.9.2");
    let refused = book.change(vec![Step::End(one.key()), Step::Lend(taken.clone())]).await.expect_err("taken");
    assert!(matches!(refused, LeaseError::Lend(_)), "{refused}");
    let file = fs::read(dir.path().join("leases")).expect("read");
    book.change(vec![Step::Lend(one.clone()), Step::End(taken.key())]).await.expect("as it is");
    assert_eq!(fs::read(dir.path().join("leases")).expect("read"), file, "what changes nothing is not written");
    assert!(futures_util::FutureExt::now_or_never(seen.changed()).is_none());
    // Over to somebody else, in one step.
    book.change(vec![Step::End(two.key()), Step::Lend(taken.clone())]).await.expect("free now");
    drop(book);
    let again = opened(dir.path());
    assert_eq!(again.clients().all(), [one, six, taken]);
}

#[tokio::test]
async fn what_the_disk_refuses_never_was() {
    let above = dir();
    let dir = above.path().join("state");
    fs::create_dir(&dir).expect("made");
    let book = opened(&dir);
    let a = assign(&book, "a").await.expect("free");
    // A file that was deleted must not be appended to, since that would be lost; a failed write makes the journal
    // notice.
    drop(book);
    let (mut journal, ipam, _) = load(&dir).expect("loaded");
    journal.fail_next(fs::File::options().write(true).open("/dev/full").expect("there"));
    let book = super::book::start(journal, ipam).expect("started");
    let refused = assign(&book, "b").await.expect_err("the disk is full");
    assert!(matches!(&refused, LeaseError::Store(e) if e.to_string().contains("leases")), "{refused}");
    assert_eq!(*book.all(), *std::slice::from_ref(&a));
    // Until the file was made anew no request succeeds, not even one that changes nothing.
    fs::rename(&dir, above.path().join("away")).expect("renamed");
    for container in ["a", "b"] {
        let refused = assign(&book, container).await.expect_err("there is no directory");
        assert!(matches!(refused, LeaseError::Store(_)), "{refused}");
    }
    assert_eq!(*book.all(), *std::slice::from_ref(&a));
    fs::rename(above.path().join("away"), &dir).expect("renamed");
    assert_eq!(assign(&book, "a").await.expect("there"), a);
    let c = assign(&book, "c").await.expect("free");
    assert_eq!(c.ipv4, Some([10, 3, 0, 3].into()), "nobody was given it");
    assert_eq!(*opened(&dir).all(), [a, c]);
}

#[tokio::test]
async fn a_torn_end_is_cut_and_a_damaged_middle_is_said() {
    let dir = dir();
    let path = dir.path().join("leases");
    let book = opened(dir.path());
    let a = assign(&book, "a").await.expect("free");
    let whole = fs::read(&path).expect("read").len();
    let b = assign(&book, "b").await.expect("free");
    drop(book);
    let file = fs::read(&path).expect("read");
    for end in [&file[whole..file.len() - 1], &[0; 4096], b"garbage"] {
        fs::write(&path, [&file[..whole], end].concat()).expect("written");
        let book = opened(dir.path());
        assert_eq!(*book.all(), *std::slice::from_ref(&a));
        assert_eq!(assign(&book, "b").await.expect("free"), b);
        assert_eq!(*opened(dir.path()).all(), [a.clone(), b.clone()], "what follows the cut is read");
    }
    let book = opened(dir.path());
    assign(&book, "c").await.expect("free");
    assign(&book, "d").await.expect("free");
    let good = fs::read(&path).expect("read");
    for at in [3, 30, good.len() - 150] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        // Damage in the last batch alone could be an interrupted write, so a complete batch is added behind it.
        if at > 30 {
            bad.extend(&file[whole..]);
        }
        fs::write(&path, &bad).expect("written");
        let (book, conditions) = open(dir.path(), None).expect("opened");
        assert!(matches!(&conditions[..], [why] if why.contains("leases lost")), "{conditions:?}");
        assert!(book.all().is_empty());
        assert!(!path.exists());
    }
    assert!(dir.path().join("leases.corrupt-3").exists());
}

#[tokio::test]
async fn a_long_file_is_written_anew() {
    let dir = dir();
    let path = dir.path().join("leases");
    let (journal, _, _) = load(dir.path()).expect("loaded");
    assert!(!journal.is_long());
    let book = opened(dir.path());
    assign(&book, "stays").await.expect("free");
    let mut longest = 0;
    // Each step writes a change of 100 bytes or more.
    for _ in 0..80 {
        let steps = (0..100).flat_map(|i| [wanted(&format!("c{i}"), None), Step::Release(key(&format!("c{i}")))]);
        book.change(steps.collect()).await.expect("free");
        longest = longest.max(fs::metadata(&path).expect("there").len());
    }
    assign(&book, "last").await.expect("free");
    let now = fs::metadata(&path).expect("there").len();
    assert!(longest > 1 << 20 && longest < (1 << 20) + 100_000 && now < longest / 2, "{now} of {longest}");
    assert_eq!(*opened(dir.path()).all(), *book.all());
    assert!(!dir.path().join("leases.new").exists());
}

#[tokio::test]
async fn leases_of_an_older_state_file_move_to_the_book() {
    let dir = dir();
    let mut ipam = Ipam::new();
    let old_key = key("old");
    let request = crate::ipam::Request { key: &old_key, ipv4: None, ipv6: None, mac: None };
    let (lease, _) = ipam.assign(&pool(), &request).expect("free");
    let old = State { ipam: Some(ipam.clone()), ..State::default() };
    store::save(dir.path(), &old).expect("saved");
    // The daemon is killed before it has saved the state without the leases; twice.
    for _ in 0..2 {
        let (mut state, _) = store::load(dir.path()).expect("loaded");
        let (book, conditions) = open(dir.path(), state.ipam.take()).expect("opened");
        assert_eq!((book.all().to_vec(), conditions), (vec![lease.clone()], Vec::new()));
    }
    store::save(dir.path(), &State::default()).expect("saved");
    assert!(!fs::read_to_string(dir.path().join("state.json")).expect("read").contains("ipam"));
    let book = opened(dir.path());
    assert_eq!(*book.all(), *std::slice::from_ref(&lease));
    assert_ne!(assign(&book, "new").await.expect("free").ipv4, lease.ipv4);
    remove(dir.path()).expect("removed");
    assert!(opened(dir.path()).all().is_empty());
}

#[tokio::test]
async fn asks_at_the_same_time_get_leases_of_their_own() {
    let dir = dir();
    let book = opened(dir.path());
    let all: Vec<_> = (0..300).map(|i| tokio::spawn(ask(book.clone(), i))).collect();
    let mut leases = Vec::new();
    for one in all {
        leases.push(one.await.expect("no panic"));
    }
    let distinct: std::collections::BTreeSet<_> = leases.iter().map(|l| l.ipv4).collect();
    assert_eq!((distinct.len(), book.all().len()), (300, 300));
    assert_eq!(*opened(dir.path()).all(), *book.all());
}

/// Blocks the book's thread until the sender is used or dropped.
async fn hold(book: &LeaseHandle) -> std::sync::mpsc::Sender<()> {
    let (go, held) = std::sync::mpsc::channel::<()>();
    book.test(move || _ = held.recv()).await;
    go
}

/// Waits for an answer that should come at once.
async fn soon<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer")
}

#[tokio::test]
async fn a_book_that_panics_is_begun_anew_and_nobody_has_what_the_disk_has_not() {
    let dir = dir();
    let book = opened(dir.path());
    let a = assign(&book, "a").await.expect("free");
    let declared = "10.3.0.99".parse().expect("an address");
    assert_eq!(book.reserve(vec![(declared, key("d"))]).await.expect("it works"), [None]);
    for round in 1..3 {
        let go = hold(&book).await;
        // One batch: the request before the panic waits for the write, the one behind it for its turn.
        let (before, after) = (format!("before{round}"), format!("after{round}"));
        let (lost, (), kept) = tokio::join!(
            soon(assign(&book, &before)),
            async {
                book.test(|| panic!("a bug")).await;
                go.send(()).expect("it is held");
            },
            async {
                tokio::task::yield_now().await;
                soon(assign(&book, &after)).await
            },
        );
        assert!(matches!(lost, Err(LeaseError::Failed)), "{lost:?}");
        let kept = kept.expect("the book goes on");
        let condition = book.condition().expect("one");
        assert_eq!(condition, "lease book: it panicked, and was begun anew from the disk: a bug");
        assert_eq!(*opened(dir.path()).all(), *book.all());
        assert!(book.all().contains(&a) && book.all().contains(&kept), "{:?}", book.all());
        assert!(!book.all().iter().any(|l| l.key == key(&before)), "it was never given");
    }
    let taken = book.change(vec![wanted("e", Some([10, 3, 0, 99]))]).await;
    assert!(matches!(taken, Err(LeaseError::Ipam(_))), "what is declared is still kept: {taken:?}");
}

#[tokio::test]
async fn a_book_that_cannot_begin_anew_gives_nothing_and_lets_nobody_wait() {
    let dir = dir();
    let book = opened(dir.path());
    let a = assign(&book, "a").await.expect("free");
    let go = hold(&book).await;
    let (waits, ()) = tokio::join!(soon(assign(&book, "b")), async {
        book.test(|| panic!("a bug")).await;
        // A directory in the file's place makes it unreadable.
        fs::remove_file(dir.path().join("leases")).expect("removed");
        fs::create_dir(dir.path().join("leases")).expect("made");
        go.send(()).expect("it is held");
    });
    assert!(matches!(waits, Err(LeaseError::Failed)), "{waits:?}");
    let ended = async {
        while !matches!(assign(&book, "c").await, Err(LeaseError::Ended)) {
            tokio::task::yield_now().await;
        }
    };
    soon(ended).await;
    assert!(book.condition().expect("one").contains("no address can be given any more"), "{:?}", book.condition());
    assert_eq!(*book.all(), [a], "what was given is still so");
}

async fn ask(book: LeaseHandle, number: usize) -> Arc<Lease> {
    assign(&book, &format!("c{number}")).await.expect("free")
}

/// Measures how many leases a second the disk takes: `cargo test -p pv-net --release lease_rate -- --ignored
/// --nocapture`, with TMPDIR on that disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn lease_rate() {
    const SECONDS: u64 = 3;
    for writers in [1, 8, 64] {
        let dir = dir();
        let book = opened(dir.path());
        let end = Instant::now() + Duration::from_secs(SECONDS);
        let all: Vec<_> = (0..writers).map(|w| tokio::spawn(write_until(book.clone(), w, end))).collect();
        let mut took = Vec::new();
        for one in all {
            took.extend(one.await.expect("no panic"));
        }
        took.sort_unstable();
        let at = |share: usize| took[took.len() * share / 100];
        let rate = took.len() as u64 / SECONDS;
        println!("{writers} writers: {rate} leases/s, p50 {:?}, p99 {:?}", at(50), at(99));
    }
    // For comparison, as in earlier versions: the whole state is written for each lease.
    let dir = dir();
    let (mut ipam, mut took) = (Ipam::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < end {
        let begun = Instant::now();
        let key = key(&format!("c{}", took.len()));
        let request = crate::ipam::Request { key: &key, ipv4: None, ipv6: None, mac: None };
        ipam.assign(&pool(), &request).expect("free");
        store::save(dir.path(), &State { ipam: Some(ipam.clone()), ..State::default() }).expect("saved");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let at = |share: usize| took[took.len() * share / 100];
    println!("the whole file each time: {} leases/s, p50 {:?}, p99 {:?}", took.len() as u64 / SECONDS, at(50), at(99));
}

async fn write_until(book: LeaseHandle, writer: usize, end: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        assign(&book, &format!("w{writer}-{}", took.len() % 500)).await.expect("free");
        took.push(begun.elapsed());
        // Releases them again, so that the number of leases stays about the same.
        if took.len() % 500 == 499 {
            let gone = (0..500).map(|i| Step::Release(key(&format!("w{writer}-{i}")))).collect();
            book.change(gone).await.expect("released");
        }
    }
    took
}
