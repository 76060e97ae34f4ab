//! Links of pv-net whose name or `ifalias` somebody has changed, and the steps that restore it. A renamed link is
//! recognised by its `ifalias`, and a link with another `ifalias` by its index.

use super::{Observed, Op};
use crate::model::{Attachment, IfName, PoolName, alias};

/// The name that a link with the alias `mark` should have: that of the host side of one of `attachments`, or of one of
/// `bridges`.
fn wanted<'a>(
    name: &str,
    mark: &str,
    attachments: &'a [Attachment],
    bridges: &'a [(PoolName, IfName)],
) -> Option<&'a IfName> {
    if let Some(found) = alias::to_attachment(name, mark) {
        let same = |a: &&Attachment| a.container == found.container && a.interface == found.interface;
        return attachments.iter().find(same).map(|a| &a.host_if);
    }
    let pool = alias::bridge_pool(mark)?;
    bridges.iter().find(|(of, _)| *of == pool).map(|(_, bridge)| bridge)
}

/// Links of pv-net that have another name than their own: index, and own name.
#[must_use]
pub fn misnamed(observed: &Observed, attachments: &[Attachment], bridges: &[(PoolName, IfName)]) -> Vec<(u32, IfName)> {
    let links = observed.links.values();
    let marked =
        links.filter_map(|link| Some((link, wanted(&link.name, link.alias.as_deref()?, attachments, bridges)?)));
    marked.filter(|(link, name)| link.name != name.as_str()).map(|(link, name)| (link.index, name.clone())).collect()
}

/// The steps that give such links their own names back. A link whose own name is taken by another link keeps its
/// present one.
#[must_use]
pub fn restored_names(misnamed: &[(u32, IfName)], observed: &Observed) -> Vec<Op> {
    let free = misnamed.iter().filter(|(_, name)| !observed.links.contains_key(name.as_str()));
    free.map(|(index, name)| Op::Rename { link: observed.name_of(*index), index: *index, name: name.clone() }).collect()
}

/// A link that pv-net made, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its index when it was made.
    pub index: u32,
    /// Its own name.
    pub name: String,
    /// Its own `ifalias`.
    pub alias: String,
}

impl Marked {
    /// Whether `alias` is this link's; one that says that the attach is unfinished is, too.
    #[must_use]
    pub fn is_marked(&self, alias: Option<&str>) -> bool {
        alias.is_some_and(|alias| alias::finished(alias) == self.alias)
    }
}

/// The steps that give links of pv-net their `ifalias` back. A link that has neither its own name nor its own `ifalias`
/// is not recognised: its index may be in use by another link by now.
#[must_use]
pub fn restored_marks(own: &[Marked], observed: &Observed) -> Vec<Op> {
    let changed = own.iter().filter(|m| {
        observed.link(m.index).is_some_and(|link| link.name == m.name && !m.is_marked(link.alias.as_deref()))
    });
    changed.map(|m| Op::SetAlias { link: m.name.clone(), index: m.index, alias: m.alias.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{attachment, whole};
    use super::*;

    #[test]
    fn a_link_is_known_by_its_mark_and_not_by_its_name() {
        let attachments = [attachment(7), attachment(8)];
        let before = whole(&[7, 8], true);
        assert_eq!(misnamed(&before, &attachments, &[]), []);
        let mut now = before.clone();
        now.apply(&Op::Rename { link: "pv7".to_owned(), index: 107, name: "other".parse().expect("name") });
        assert_eq!(now.links["other"].index, 107);
        let found = misnamed(&now, &attachments, &[]);
        assert_eq!(found, [(107, "pv7".parse().expect("name"))]);
        let ops = restored_names(&found, &now);
        assert_eq!(ops.iter().map(ToString::to_string).collect::<Vec<_>>(), ["other called pv7"]);
        // Another link has its name, so it keeps its present one.
        let mut taken = now.clone();
        let stranger = super::super::Link { alias: None, index: 9, name: "pv7".to_owned(), ..now.links["pv8"].clone() };
        taken.links.insert("pv7".to_owned(), stranger);
        assert_eq!(restored_names(&found, &taken), []);
        ops.iter().for_each(|op| now.apply(op));
        assert_eq!(now, before);
    }

    #[test]
    fn a_link_is_known_by_its_index_and_name_without_its_mark() {
        let before = whole(&[7, 8], true);
        let of = |n: u8| Marked {
            index: 100 + u32::from(n),
            name: format!("pv{n}"),
            alias: alias::of_attachment(&attachment(n)),
        };
        let own = [of(7), of(8)];
        assert_eq!(restored_marks(&own, &before), []);
        let mut now = before.clone();
        for (link, alias) in [("pv7", "mine now".to_owned()), ("pv8", alias::unfinished(&own[1].alias))] {
            let index = now.links[link].index;
            now.apply(&Op::SetAlias { link: link.to_owned(), index, alias });
        }
        let ops = restored_marks(&own, &now);
        assert_eq!(ops, [Op::SetAlias { link: "pv7".to_owned(), index: 107, alias: own[0].alias.clone() }]);
        now.apply(&ops[0]);
        assert_eq!(now.links["pv7"], before.links["pv7"]);
        // Another link has the index by now.
        now.apply(&Op::SetAlias { link: "pv7".to_owned(), index: 107, alias: String::new() });
        now.apply(&Op::Rename { link: "pv7".to_owned(), index: 107, name: "other".parse().expect("name") });
        assert_eq!(restored_marks(&own, &now), []);
    }
}
