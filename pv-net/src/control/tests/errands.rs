//! Only the sender of a command waits for its errands.

use super::{ATTACH, ERRAND, HANGS, Lab, open, paused};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

#[test]
fn a_command_that_needs_a_namespace_that_hangs_holds_up_nobody_else() {
    paused(async {
        let lab = Lab::new();
        let begun = Instant::now();
        let (stuck, (), detached) = tokio::join!(
            lab.attach("stuck-a"),
            async {
                for n in 0..3 {
                    lab.attach(&format!("b{n}")).await.expect("attached");
                }
                lab.attach("other-c").await.expect("attached");
                assert_eq!(begun.elapsed(), ATTACH * 4 + ERRAND);
            },
            lab.detach("stuck-d"),
        );
        stuck.expect("attached when its namespace is known");
        assert_eq!(detached.expect_err("it is none").line(), "is not attached");
        assert_eq!(begun.elapsed(), HANGS + ATTACH);
        let done: Vec<_> = lab.done().into_iter().filter(|what| what != "audit").collect();
        assert_eq!(done[..4], ["attach b0", "attach b1", "attach b2", "attach other-c"]);
        assert_eq!(done.len(), 6, "{done:?}");
    });
}

#[test]
fn what_commands_need_is_found_at_the_same_time() {
    paused(async {
        let lab = Lab::new();
        let begun = Instant::now();
        let names: Vec<String> = (0..100).map(|n| format!("stuck-{n}")).collect();
        let all = names.iter().map(|name| lab.attach(name));
        for outcome in join_all(all).await {
            outcome.expect("attached");
        }
        assert_eq!(begun.elapsed(), HANGS + ATTACH * 100);
    });
}

#[test]
fn a_reload_is_answered_when_all_that_it_began_is_over_and_nobody_else_waits() {
    paused(async {
        let lab = Lab::new();
        *lab.left.lock().expect("no panic") = vec![open("quick"), open("stuck")];
        let begun = Instant::now();
        let (reloaded, ()) = tokio::join!(lab.commands.reload(), async {
            lab.attach("web").await.expect("attached");
            lab.commands.reload().await.expect("this one leaves nothing");
            assert_eq!(begun.elapsed(), ATTACH);
        });
        reloaded.expect("reloaded");
        assert_eq!(begun.elapsed(), HANGS);
        let done: Vec<_> = lab.done().into_iter().filter(|what| what != "audit").collect();
        assert_eq!(done, ["reload", "attach web", "quick brought", "reload", "stuck brought"]);
        // When the daemon stops meanwhile, the reload is done all the same.
        *lab.left.lock().expect("no panic") = vec![open("stuck")];
        let stop = async {
            sleep(ERRAND).await;
            lab.stop.cancel();
        };
        let (reloaded, ()) = tokio::join!(lab.commands.reload(), stop);
        reloaded.expect("reloaded");
    });
}

#[test]
fn later_commands_for_a_container_wait_for_the_one_that_is_halted() {
    paused(async {
        let lab = Lab::new();
        let begun = Instant::now();
        let (attached, detached, again, ()) = tokio::join!(
            lab.attach("stuck-a"),
            async {
                sleep(ERRAND).await;
                lab.detach("stuck-a").await
            },
            async {
                sleep(ERRAND * 2).await;
                lab.attach("stuck-a").await
            },
            async {
                sleep(ERRAND).await;
                lab.attach("b").await.expect("others go on");
                assert_eq!(begun.elapsed(), ERRAND + ATTACH);
            },
        );
        attached.expect("attached");
        detached.expect("it was attached before");
        again.expect("attached again");
        // Each of them starts when the one before is over, and then waits for the namespace itself.
        assert_eq!(begun.elapsed(), HANGS * 3 + ATTACH * 2);
        let done: Vec<_> = lab.done().into_iter().filter(|what| what != "audit").collect();
        assert_eq!(done, ["attach b", "attach stuck-a", "detach stuck-a", "attach stuck-a"]);
    });
}
