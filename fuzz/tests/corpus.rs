//! Runs every input of the corpus against its target, so that fixed bugs stay fixed.

use fuzz::{corpus, limits, targets};

/// Runs the inputs of the target called `name`.
fn all(name: &str) {
    let target = targets::ALL.iter().find(|t| t.name == name).expect("a target");
    for input in corpus::kept(name).expect("its corpus") {
        println!("{}", input.path.display());
        limits::enforce(target.check, &input.bytes);
    }
}

macro_rules! each {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            all(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(targets::ALL.map(|t| t.name), tested);
        }
    };
}

each!(packet device run services state leases alias netlink events dns dhcp ra dhcp6 dhcp_client runtime pantavisor dbus text);
