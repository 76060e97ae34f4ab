//! Which processes a program has started, after what the kernel tells of all processes. Pure.
//!
//! A program that runs inside a container is started by the runtime's own one, the *client*, which joins the container's
//! namespaces and forks. When the client is killed, what it has started goes on. It is found by its parents, as long as these
//! are there, and by its process groups and sessions, which it keeps after their end. A process that has left its session
//! *and* has lost its parents cannot be told from the container's others.

use std::collections::BTreeSet;

/// What the kernel tells of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// Clock ticks between the boot and its start.
    pub(super) since: u64,
    /// It has ended, and its parent has not taken note.
    pub(super) is_over: bool,
}

/// A process that the client has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) pid: u32,
    pub(super) since: u64,
    /// Its parents lead to the client. Otherwise only the number of a group or a session tells that it belongs here, which
    /// may be another one's by now.
    pub(super) is_descendant: bool,
}

/// A client, and what is known of its processes.
#[derive(Debug)]
pub(super) struct Family {
    client: u32,
    /// Whoever has started the client. Its session and process group are not the client's.
    own: Row,
    groups: BTreeSet<u32>,
    sessions: BTreeSet<u32>,
    since: u64,
}

impl Family {
    /// The client leads a process group and a session. `own` has started it.
    pub(super) fn of(client: u32, own: Row) -> Self {
        let (groups, sessions) = (BTreeSet::from([client]), BTreeSet::from([client]));
        // A process that has started before the one that starts the client cannot be one of its.
        Self { client, own, groups, sessions, since: own.since }
    }

    /// Adds the session of the process that a runtime has written down, which leads it.
    pub(super) fn add_session(&mut self, leader: u32) {
        self.sessions.insert(leader);
    }

    /// What is there of the client's processes, except itself. Groups and sessions are remembered for the next call.
    pub(super) fn members(&mut self, rows: &[Row]) -> Vec<Member> {
        if let Some(client) = rows.iter().find(|row| row.pid == self.client) {
            self.since = client.since;
        }
        let mut descendants = BTreeSet::from([self.client]);
        loop {
            let before = descendants.len();
            descendants.extend(
                rows.iter().filter(|row| descendants.contains(&row.parent)).map(|row| row.pid).collect::<Vec<_>>(),
            );
            if descendants.len() == before {
                break;
            }
        }
        for row in rows.iter().filter(|row| descendants.contains(&row.pid)) {
            // A number of another PID namespace is told as 0.
            if row.group != self.own.group && row.group != 0 {
                self.groups.insert(row.group);
            }
            if row.session != self.own.session && row.session != 0 {
                self.sessions.insert(row.session);
            }
        }
        let is_known = |row: &&Row| self.groups.contains(&row.group) || self.sessions.contains(&row.session);
        let belongs = |row: &&Row| descendants.contains(&row.pid) || (is_known(row) && row.since >= self.since);
        let others = rows.iter().filter(|row| row.pid != self.client && row.pid != self.own.pid && !row.is_over);
        let member =
            |row: &Row| Member { pid: row.pid, since: row.since, is_descendant: descendants.contains(&row.pid) };
        others.filter(belongs).map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn row(pid: u32, parent: u32, group: u32, session: u32) -> Row {
        Row { pid, parent, group, session, since: 100 + pid as u64, is_over: false }
    }

    /// The runner and its client, and the first process of the container.
    const OWN: Row = row(10, 1, 9, 9);
    const CLIENT: Row = row(20, 10, 20, 20);
    const FIRST: Row = row(15, 14, 15, 15);

    fn pids(members: &[Member]) -> Vec<u32> {
        members.iter().map(|member| member.pid).collect()
    }

    #[test]
    fn what_a_client_has_started_is_found_by_its_parents() {
        let rows =
            [OWN, CLIENT, FIRST, row(21, 20, 21, 21), row(22, 21, 21, 21), row(23, 22, 23, 23), row(24, 15, 15, 15)];
        let mut family = Family::of(20, OWN);
        let members = family.members(&rows);
        assert_eq!(pids(&members), [21, 22, 23]);
        assert!(members.iter().all(|member| member.is_descendant));
        let over = Row { is_over: true, ..rows[3] };
        assert_eq!(pids(&family.members(&[OWN, CLIENT, over, row(22, 21, 21, 21)])), [22]);
    }

    #[test]
    fn what_has_lost_its_parents_is_found_by_its_group_or_session() {
        // LXC: the command is in the client's group and session.
        let mut family = Family::of(20, OWN);
        let rows =
            [OWN, CLIENT, FIRST, row(21, 20, 20, 20), row(22, 15, 20, 20), row(23, 15, 23, 20), row(30, 1, 30, 9)];
        assert_eq!(pids(&family.members(&rows)), [21, 22, 23]);
        // crun: a session whose leader is gone. It is remembered when the client and its child are gone too.
        let mut family = Family::of(20, OWN);
        let orphan = row(23, 15, 21, 21);
        assert_eq!(pids(&family.members(&[OWN, CLIENT, FIRST, row(22, 20, 21, 21), orphan])), [22, 23]);
        let left = family.members(&[OWN, FIRST, orphan]);
        assert!(pids(&left) == [23] && !left[0].is_descendant, "{left:?}");
        // runc: only the written id leads there.
        let mut family = Family::of(20, OWN);
        assert_eq!(pids(&family.members(&[OWN, CLIENT, FIRST, orphan])), [0_u32; 0]);
        family.add_session(21);
        assert_eq!(pids(&family.members(&[OWN, CLIENT, FIRST, orphan])), [23]);
    }

    #[test]
    fn nothing_else_belongs_to_it() {
        let mut family = Family::of(20, OWN);
        family.add_session(21);
        // In sessions and groups of the same number, but older than the client; the runner's own; and those of other PID
        // namespaces, which are told as 0.
        let old = Row { since: 5, ..row(21, 1, 21, 21) };
        let hidden = [row(40, 20, 0, 0), row(41, 1, 0, 0)];
        let rows = [OWN, CLIENT, FIRST, old, row(31, 10, 9, 9), hidden[0], hidden[1]];
        assert_eq!(pids(&family.members(&rows)), [40]);
    }
}
