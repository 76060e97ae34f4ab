//! Answers of other servers: which are taken, how they are passed on, and how long they are kept.

use super::*;

/// An answer with an address, EDNS, and an extended error.
fn response(name: &str, ttl: u32, address: [u8; 4]) -> Vec<u8> {
    let asked = question(name, RecordType::A);
    let end = asked.len() - 11;
    let mut message = asked[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0xa0]);
    message[7] = 1;
    message.extend([&[0xc0, 12, 0, 1, 0, 1][..], &ttl.to_be_bytes(), &[0, 4], &address].concat());
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 11, 0, 15, 0, 3, 0, 4, b'x', 0, 10, 0, 0]);
    message
}

#[test]
fn another_servers_answer_is_passed_on_and_grows_old() {
    let asked = question("www.example", RecordType::A);
    let query = Query::parse(&asked).expect("a question");
    let came = Response::parse(&response("www.example", 100, [192, 0, 2, 1]), &query, 0x0707).expect("an answer");
    assert_eq!((came.rcode, came.ttl, came.is_private, came.has_edns), (ResponseCode::NoError, 100, false, true));
    let now = Instant::now();
    let mut cache = Cache::default();
    let key = cache::key(&query, 1);
    cache.put(key.clone(), Arc::new(came), now);
    // Another client asks with other letters, and without EDNS.
    let mut other = question("WWW.example", RecordType::A);
    other[13] = b'W';
    other.truncate(other.len() - 11);
    other[11] = 0;
    let other = Query::parse(&other).expect("a question");
    assert_eq!(cache::key(&other, 1), key);
    let kept = cache.get(&key, now + Duration::from_secs(40)).expect("kept");
    assert!(kept.holds(now + Duration::from_secs(99)) && !kept.holds(now + Duration::from_secs(100)));
    let mut out = Vec::new();
    // Only what has just come is the other server's own word, if that says so (RFC 1035 section 4.1.1).
    let mut own = response("www.example", 100, [192, 0, 2, 1]);
    own[2] |= 4;
    let own = Response::parse(&own, &query, 0x0707).expect("an answer");
    for (left, want) in [(Left::All, true), (Left::Since(0), false), (Left::Only(30), false)] {
        out.clear();
        own.write(&query, 512, left, None, &mut out);
        assert_eq!(Message::from_vec(&out).expect("an answer").metadata.authoritative, want, "{left:?}");
    }
    out.clear();
    kept.response.write(&other, 512, Left::Since(40), None, &mut out);
    let read = Message::from_vec(&out).expect("an answer");
    assert_eq!((read.answers[0].ttl, read.edns.is_some(), out[13]), (60, false, b'W'));
    assert!(!read.metadata.authentic_data, "nobody asked for it");
    kept.response.write(&query, 512, Left::Only(30), None, &mut out);
    let read = Message::from_vec(&out).expect("an answer");
    assert_eq!((read.answers[0].ttl, read.edns.is_some()), (30, true));
    assert!(out.windows(7).any(|w| w == [0, 15, 0, 3, 0, 4, b'x']), "the extended error");
    assert!(!out.ends_with(&[0, 10, 0, 0]), "what is between neighbours");
    // The answer is too large for the client.
    kept.response.write(&query, 40, Left::Since(0), None, &mut out);
    let read = Message::from_vec(&out).expect("an answer");
    assert!(read.metadata.truncation && read.answers.is_empty());
    // Answers of other servers have other keys.
    assert!(cache.get(&cache::key(&query, 2), now).is_none());
}

#[test]
fn what_is_no_answer_is_none() {
    let asked = question("www.example", RecordType::A);
    let query = Query::parse(&asked).expect("a question");
    let good = response("www.example", 100, [192, 0, 2, 1]);
    let parse = |message: &[u8]| Response::parse(message, &query, 0x0707).map(|r| r.rcode);
    assert_eq!(parse(&good), Ok(ResponseCode::NoError));
    assert_eq!(Response::parse(&good, &query, 1), Err(NoResponse::Other), "another number");
    assert_eq!(parse(&response("wwx.example", 100, [192, 0, 2, 1])), Err(NoResponse::Other), "another name");
    assert_eq!(parse(&asked), Err(NoResponse::Other), "a question");
    for len in 12..good.len() {
        assert!(parse(&good[..len]).is_err(), "{len} bytes");
    }
    let mut into_head = good.clone();
    into_head[30] = 1;
    assert_eq!(parse(&into_head), Err(NoResponse::Broken), "a name in the header");
    let mut class = good.clone();
    class[34] = 3;
    assert_eq!(parse(&class), Err(NoResponse::Broken), "a record of class CH");
    let mut kind = good.clone();
    kind[26] = 28;
    assert_eq!(parse(&kind), Err(NoResponse::Other), "another type");
    let mut id = good[..12].to_vec();
    id[3] = 1;
    id[4..].fill(0);
    assert_eq!(parse(&id), Ok(ResponseCode::FormErr), "a header alone");
    assert!(Response::parse(&response("www.example", 1, [10, 0, 0, 1]), &query, 0x0707).expect("answer").is_private);
    assert_eq!(Response::parse(&response("www.example", u32::MAX, [1; 4]), &query, 0x0707).expect("answer").ttl, 0);
}

/// RFC 2181 section 9.
#[test]
fn what_is_cut_anywhere_is_asked_for_by_tcp() {
    let asked = question("www.example", RecordType::A);
    let query = Query::parse(&asked).expect("a question");
    let mut cut = response("www.example", 100, [192, 0, 2, 1]);
    cut[2] |= 2;
    for len in query.question_end()..=cut.len() {
        let came = Response::parse(&cut[..len], &query, 0x0707).expect("an answer");
        let mut out = Vec::new();
        came.write(&query, 512, Left::All, None, &mut out);
        let read = Message::from_vec(&out).expect("an answer");
        assert!(came.is_cut() && read.metadata.truncation, "{len}");
        assert_eq!(read.answers.len(), usize::from(len == cut.len()), "{len}");
    }
}

/// RFC 2308 section 5: the signature of an alias is no answer to a question about something else.
#[test]
fn a_negative_answer_behind_an_alias_is_kept_as_long_as_its_zone_says() {
    let asked = question("www.example", RecordType::AAAA);
    let query = Query::parse(&asked).expect("a question");
    let mut message = asked[..query.question_end()].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    (message[7], message[9], message[11]) = (2, 1, 0);
    let record = |kind: u8, ttl: u32, data: &[u8]| {
        [&[0xc0, 12, 0, kind, 0, 1][..], &ttl.to_be_bytes(), &(data.len() as u16).to_be_bytes(), data].concat()
    };
    let soa = [&[0, 0][..], &[0; 16], &5_u32.to_be_bytes()].concat();
    message.extend([record(5, 86_400, &[1, b'x', 0]), record(46, 86_400, &[0; 20]), record(6, 3600, &soa)].concat());
    assert_eq!(Response::parse(&message, &query, 0x0707).expect("an answer").ttl, 5);
    let alias = question("www.example", RecordType::CNAME);
    message[query.question_end() - 3] = 5;
    let alias = Query::parse(&alias).expect("a question");
    assert_eq!(Response::parse(&message, &alias, 0x0707).expect("an answer").ttl, 86_400);
}

#[test]
fn options_of_edns_that_nobody_needs_are_no_reason_for_anything() {
    let asked = question("www.example", RecordType::A);
    let query = Query::parse(&asked).expect("a question");
    let with = |options: &[u8]| {
        let mut message = response("www.example", 100, [192, 0, 2, 1]);
        message.truncate(message.len() - 13);
        message.extend([&(options.len() as u16).to_be_bytes(), options].concat());
        Response::parse(&message, &query, 0x0707).map(|came| {
            let mut out = Vec::new();
            came.write(&query, 512, Left::All, None, &mut out);
            out.windows(6).any(|w| w == [0, 15, 0, 2, 0, 3])
        })
    };
    // A client's network of no family (RFC 7871), and one that is cut short.
    assert_eq!(with(&[0, 8, 0, 4, 0, 0, 0, 0, 0, 15, 0, 2, 0, 3]), Ok(true));
    assert_eq!(with(&[0, 8, 0, 1, 0]), Ok(false));
    assert_eq!(with(&[0, 15, 0, 9, 0, 3]), Err(NoResponse::Broken));
    assert_eq!(with(&[0, 15, 0]), Err(NoResponse::Broken));
    // Errors without the question, with EDNS and without.
    for (code, want) in [
        (1, Ok(ResponseCode::FormErr)),
        (5, Ok(ResponseCode::Refused)),
        (3, Err(NoResponse::Other)),
        (0, Err(NoResponse::Other)),
    ] {
        for edns in [&[][..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]] {
            let head = [7, 7, 0x81, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, u8::from(!edns.is_empty())];
            let came = Response::parse(&[&head[..], edns].concat(), &query, 0x0707);
            assert_eq!(came.as_ref().map(|c| c.rcode).map_err(|e| *e), want, "{code}");
            assert!(came.is_err() || came.is_ok_and(|c| !c.has_edns), "it is asked without EDNS");
        }
    }
}

/// Records of unknown types are passed on unchanged, and the name has the client's letters.
#[test]
fn what_is_not_known_is_passed_on() {
    let asked = question("www.example", RecordType::from(65_280));
    let query = Query::parse(&asked).expect("a question");
    let mut message = asked[..query.question_end()].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    (message[7], message[9], message[11]) = (1, 1, 0);
    let begin = message.len();
    message.extend([&[0xc0, 12, 0xff, 0, 0, 1, 0, 0, 0, 9, 0, 3][..], b"abc"].concat());
    // A signature, with a compressed name where none is allowed.
    message.extend([&[0xc0, 16, 0, 46, 0, 1, 0, 0, 0, 9, 0, 4][..], &[1, 2, 0xc0, 12]].concat());
    let came = Response::parse(&message, &query, 0x0707).expect("an answer");
    let mut other = asked.clone();
    other[13..16].copy_from_slice(b"WwW");
    let mut out = Vec::new();
    came.write(&Query::parse(&other).expect("a question"), 512, Left::Since(0), None, &mut out);
    assert_eq!(&out[begin..begin + 31], &message[begin..]);
    assert_eq!(&out[12..begin], &other[12..begin]);
}

/// Hints are addresses that a client may use in place of the name's (RFC 9460).
#[test]
fn hints_lead_inside_too() {
    let asked = question("www.example", RecordType::HTTPS);
    let query = Query::parse(&asked).expect("a question");
    for (params, want) in [
        (&[0, 4, 0, 4, 10, 0, 0, 1][..], true),
        (&[0, 4, 0, 8, 198, 51, 100, 1, 192, 168, 0, 1], true),
        (&[0, 4, 0, 4, 198, 51, 100, 1], false),
        (&[0, 6, 0, 16, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], true),
        (&[0, 1, 0, 3, 2, b'h', b'2'], false),
        (&[0, 4, 0, 3, 10, 0, 0], true),
    ] {
        let mut message = asked[..query.question_end()].to_vec();
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        (message[7], message[11]) = (1, 0);
        let data = [&[0, 1, 0][..], params].concat();
        message.extend([&[0xc0, 12, 0, 65, 0, 1, 0, 0, 0, 9, 0, data.len() as u8][..], &data].concat());
        let came = Response::parse(&message, &query, 0x0707).expect("an answer");
        assert_eq!(came.is_private, want, "{params:?}");
    }
}

#[test]
fn addresses_inside_are_known() {
    for (text, want) in [
        ("10.1.2.3", true),
        ("172.31.0.1", true),
        ("172.32.0.1", false),
        ("192.168.0.1", true),
        ("127.0.0.1", true),
        ("169.254.1.1", true),
        ("100.64.0.1", true),
        ("100.128.0.1", false),
        ("0.0.0.0", true),
        ("198.51.100.1", false),
        ("fd00::1", true),
        ("fe80::1", true),
        ("::1", true),
        ("::", true),
        ("::ffff:10.0.0.1", true),
        ("::ffff:198.51.100.1", false),
        ("64:ff9b::10.0.0.1", true),
        ("64:ff9b::198.51.100.1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(is_private(text.parse().expect("address")), want, "{text}");
    }
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let put = |cache: &mut Cache, n: u32| {
        let name = format!("n{n}.example");
        let asked = question(&name, RecordType::A);
        let query = Query::parse(&asked).expect("a question");
        let came = Response::parse(&response(&name, 100, [192, 0, 2, 1]), &query, 0x0707).expect("an answer");
        let key = cache::key(&query, 0);
        cache.put(key.clone(), Arc::new(came), now);
        key
    };
    let used = put(&mut cache, 0);
    for n in 1..20_000 {
        put(&mut cache, n);
        if n % 100 == 0 {
            assert!(cache.get(&used, now).is_some(), "after {n}");
        }
    }
    let (entries, bytes) = cache.used();
    assert!(entries <= 4096 && bytes <= 2 << 20, "{entries} entries of {bytes} bytes");
    assert!(entries > 3000);
}

/// An answer that is used often is fetched early, and not at each use when that fails.
#[test]
fn an_early_fetch_that_fails_is_not_repeated_at_once() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let asked = question("hot.example", RecordType::A);
    let query = Query::parse(&asked).expect("a question");
    let came = Response::parse(&response("hot.example", 100, [192, 0, 2, 1]), &query, 0x0707).expect("an answer");
    let key = cache::key(&query, 0);
    cache.put(key.clone(), Arc::new(came), now);
    let at = |secs| now + Duration::from_secs(secs);
    let is_due = |cache: &mut Cache, secs| cache.get(&key, at(secs)).expect("kept").is_due(at(secs));
    assert!((0..8).all(|_| !is_due(&mut cache, 50)) && is_due(&mut cache, 95));
    cache.rest(&cache::key(&query, 0), at(98));
    assert!(!is_due(&mut cache, 96) && is_due(&mut cache, 99));
}
