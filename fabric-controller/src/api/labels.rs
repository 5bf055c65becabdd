//! What an operator says a node is like: labels and its fault domain.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use fabric_proto::v1::LabelNodeRequest;

use crate::{
    error::{Error, Result},
    model::{label, node::NodeRecord},
};

/// Most changes that an event names.
const MOST_NAMED: usize = 8;

/// A change of a node's labels, checked.
#[derive(Debug, Clone)]
pub(super) struct Labelling {
    set: BTreeMap<String, String>,
    remove: BTreeSet<String>,
    /// `None` leaves it; `Some(None)` takes it back.
    fault_domain: Option<Option<String>>,
}

impl Labelling {
    /// Checks a request.
    pub(super) fn read(request: LabelNodeRequest) -> Result<Self> {
        let LabelNodeRequest {
            set,
            remove,
            fault_domain,
            ..
        } = request;
        let remove: BTreeSet<_> = remove.into_iter().collect();
        for text in set.iter().flat_map(|(key, value)| [key, value]) {
            check("set", text)?;
        }
        for key in &remove {
            check("remove", key)?;
        }
        if let Some(key) = remove.iter().find(|key| set.contains_key(*key)) {
            return Err(Error::Invalid(format!(
                "remove: label {key:?} is to be set as well; say one of both"
            )));
        }
        if set.is_empty() && remove.is_empty() && fault_domain.is_none() {
            return Err(Error::Invalid(
                "nothing is to change; say a label to set or to remove, or a fault domain"
                    .to_owned(),
            ));
        }
        let fault_domain = fault_domain.map(|domain| (!domain.is_empty()).then_some(domain));
        if let Some(Some(domain)) = &fault_domain {
            check("fault_domain", domain)?;
        }
        Ok(Self {
            set,
            remove,
            fault_domain,
        })
    }

    /// The node as it is to be.
    pub(super) fn apply(&self, mut record: NodeRecord) -> Result<NodeRecord> {
        let id = &record.node_id;
        for key in &self.remove {
            let from_operator = record.operator_labels.remove(key).is_some();
            if !from_operator && record.labels.contains_key(key) {
                return Err(Error::Precondition(format!(
                    "label {key:?} is from node {id} itself (`host-agent serve --label`); \
                     `fabctl node label {id}` can give it another value"
                )));
            }
        }
        record.operator_labels.extend(self.set.clone());
        let count = record.operator_labels.len();
        if count > label::MOST {
            return Err(Error::Precondition(format!(
                "node {id} would have {count} labels from operators; {} are the most",
                label::MOST
            )));
        }
        if let Some(domain) = &self.fault_domain {
            record.fault_domain.clone_from(domain);
        }
        Ok(record)
    }
}

/// As `fabctl node label` takes it.
impl fmt::Display for Labelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.set.iter().map(|(key, value)| format!("{key}={value}"));
        let remove = self.remove.iter().map(|key| format!("{key}-"));
        let domain = self.fault_domain.iter().map(|domain| match domain {
            Some(domain) => format!("fault domain {domain}"),
            None => "no fault domain".to_owned(),
        });
        let mut all: Vec<_> = domain.chain(set).chain(remove).collect();
        let more = all.len().saturating_sub(MOST_NAMED);
        all.truncate(MOST_NAMED);
        write!(f, "an operator says: {}", all.join(", "))?;
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        Ok(())
    }
}

/// Whether that can be a key, a value or a fault domain.
pub(super) fn check(field: &str, text: &str) -> Result<()> {
    if label::is_valid(text) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{field}: {text:?} can be no label's; keys, values and fault domains {}",
        label::RULE
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::WallTime;

    fn request(set: &[(&str, &str)], remove: &[&str], domain: Option<&str>) -> LabelNodeRequest {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        LabelNodeRequest {
            set: set.iter().map(owned).collect(),
            remove: remove.iter().map(|key| (*key).to_owned()).collect(),
            fault_domain: domain.map(str::to_owned),
            ..LabelNodeRequest::default()
        }
    }

    fn refused(request: LabelNodeRequest) -> String {
        Labelling::read(request).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_label_is_refused_by_field_and_value() {
        assert!(refused(request(&[("disk", "")], &[], None)).starts_with("set: \"\" can be no"));
        assert!(refused(request(&[], &["a\tb"], None)).starts_with("remove: \"a\\tb\""));
        let long = "r".repeat(256);
        assert!(refused(request(&[], &[], Some(&long))).contains("1 to 255 characters"));
        assert!(refused(request(&[("a", "b")], &["a"], None)).contains("one of both"));
        assert!(refused(request(&[], &[], None)).starts_with("nothing is to change"));
    }

    #[test]
    fn labels_are_set_and_taken_back_and_the_event_says_which() {
        let node = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        let asked = request(&[("disk", "nvme"), ("of", "us")], &["gpu"], Some("r1"));
        let labelling = Labelling::read(asked).unwrap();
        let said = "an operator says: fault domain r1, disk=nvme, of=us, gpu-";
        assert_eq!(labelling.to_string(), said);
        let node = labelling.apply(node).unwrap();
        assert_eq!(node.fault_domain(), "r1");
        let back = Labelling::read(request(&[], &["disk"], Some(""))).unwrap();
        let node = back.apply(node).unwrap();
        assert_eq!(node.all_labels(), request(&[("of", "us")], &[], None).set);
        assert_eq!(node.fault_domain(), "n1");
    }

    #[test]
    fn a_label_of_the_nodes_own_cannot_be_taken_back_but_what_was_set_over_it_can() {
        let mut node = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        node.labels = request(&[("disk", "hdd")], &[], None).set;
        let back = Labelling::read(request(&[], &["disk"], None)).unwrap();
        let error = back.apply(node.clone()).unwrap_err().to_string();
        assert!(error.contains("is from node n1 itself"), "{error}");
        let over = Labelling::read(request(&[("disk", "nvme")], &[], None)).unwrap();
        let labelled = over.apply(node.clone()).unwrap();
        assert_eq!(back.apply(labelled).unwrap(), node);
    }

    #[test]
    fn a_node_has_so_many_labels_and_no_more() {
        let mut node = NodeRecord::new("n1".parse().unwrap(), WallTime::EPOCH);
        for number in 0..label::MOST {
            let one = request(&[(&format!("k{number}"), "v")], &[], None);
            node = Labelling::read(one).unwrap().apply(node).unwrap();
        }
        let again = Labelling::read(request(&[("k1", "w")], &[], None)).unwrap();
        assert!(again.apply(node.clone()).is_ok());
        let one_more = Labelling::read(request(&[("new", "v")], &[], None)).unwrap();
        let error = one_more.apply(node).unwrap_err().to_string();
        assert!(error.contains("65 labels from operators"), "{error}");
    }
}
