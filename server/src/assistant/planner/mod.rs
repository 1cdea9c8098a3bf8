//! Which sources are worth asking for a question.
//!
//! What a source costs is less its own search, in memory, than the passages that the model then reads. So an index at hand is first *probed*: what does each group of sources hold of the product in question, and how
//! near is its best passage? From that a logistic model (`weights.json`, made by `scripts/train-planner`) gives the
//! chance that the group has a full answer, and the plan is the set of groups with the best chance of one among them, less
//! a price for each group. Rules come before: a greeting needs no source, a policy is asked for by its words, and where no
//! product is in question, or an index cannot be probed, all are asked.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::source::Source;

/// Sources that are asked together, since they compete with their own kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Technical data and selling points.
    Attributes,
    /// The catalog's prose.
    Description,
    /// Customers' reviews.
    Reviews,
    /// Customers' questions with answers.
    Qa,
    /// Policies of the shop.
    Policy,
}

impl Group {
    /// Those that a product has, in the order of the weights.
    pub const OF_PRODUCTS: [Group; 4] = [Group::Attributes, Group::Description, Group::Reviews, Group::Qa];
    /// All of them.
    pub const ALL: [Group; 5] =
        [Group::Attributes, Group::Description, Group::Reviews, Group::Qa, Group::Policy];

    /// What it consists of.
    pub fn sources(self) -> &'static [Source] {
        match self {
            Group::Attributes => &[Source::Attribute, Source::Bullet],
            Group::Description => &[Source::Description],
            Group::Reviews => &[Source::Review],
            Group::Qa => &[Source::Qa],
            Group::Policy => &[Source::Policy],
        }
    }

    /// Its name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Group::Attributes => "attributes",
            Group::Description => "description",
            Group::Reviews => "reviews",
            Group::Qa => "qa",
            Group::Policy => "policy",
        }
    }
}

/// What a group holds for a question about a product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// Which one; of [`Group::OF_PRODUCTS`].
    pub group: Group,
    /// Its passages on the products in question.
    pub passages: usize,
    /// Cosine of the question's meaning and the nearest passage's; `None` where meanings are not at hand.
    pub similarity: Option<f32>,
    /// The largest share of the question's words that one passage has.
    pub overlap: f32,
}

/// Which groups to ask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    /// In the order of [`Group::ALL`].
    pub groups: Vec<Group>,
    /// The chance that the sources of the product hold a full answer, asked or not; `None` where nothing was probed.
    pub confidence: Option<f32>,
}

/// Weights of a group: constant, overlap, similarity, and how far the similarity is behind the best group's. The number of
/// passages is no feature: it says much in data sets whose passages were selected for the question, and nothing in a shop.
type Weights = [f32; 4];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    /// For [`Group::OF_PRODUCTS`] where meanings are at hand.
    meaning: [Weights; 4],
    /// The same where they are not; what similarity would be multiplied with is 0.
    words: [Weights; 4],
    /// The chance of an answer that asking one more group must add.
    price: f32,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    serde_json::from_str(include_str!("weights.json")).expect("the weights are well-formed")
});

/// The plan for a question. `probes` are those of the products in question: `None` where none is, or where the index
/// cannot tell.
pub fn plan(question: &str, probes: Option<&[Probe]>) -> Planned {
    let words = words(question);
    if is_courtesy(&words) {
        return Planned { groups: Vec::new(), confidence: None };
    }
    let Some(probes) = probes else { return Planned { groups: Group::ALL.to_vec(), confidence: None } };
    let chances = chances(probes);
    let mut groups = best(&chances, MODEL.price);
    if speaks_of_policies(&words) || groups.is_empty() {
        groups.push(Group::Policy);
    }
    groups.sort();
    let none: f32 = chances.iter().map(|(_, chance)| 1.0 - chance).product();
    Planned { groups, confidence: Some(1.0 - none) }
}

/// The chance of a full answer in each group that holds anything.
fn chances(probes: &[Probe]) -> Vec<(Group, f32)> {
    let held = || probes.iter().filter(|probe| probe.passages > 0);
    let nearest = held().filter_map(|probe| probe.similarity).fold(f32::NEG_INFINITY, f32::max);
    let chance = |probe: &Probe| {
        let at = Group::OF_PRODUCTS.iter().position(|group| *group == probe.group)?;
        let weights = if probe.similarity.is_some() { &MODEL.meaning[at] } else { &MODEL.words[at] };
        let similarity = probe.similarity.unwrap_or_default();
        let behind = probe.similarity.map_or(0.0, |similarity| similarity - nearest);
        let features = [1.0, probe.overlap, similarity, behind];
        let logit: f32 = weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum();
        Some((probe.group, 1.0 / (1.0 + (-logit).exp())))
    };
    held().filter_map(chance).collect()
}

/// The set with the best chance that one of it has an answer, chances taken as independent, less the price of each. With
/// equal prices that is the likeliest ones, as long as each adds more than it costs.
fn best(chances: &[(Group, f32)], price: f32) -> Vec<Group> {
    let mut chances = chances.to_vec();
    chances.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let (mut groups, mut none) = (Vec::new(), 1.0);
    for (group, chance) in chances {
        // The first is asked whatever its chance: an answer without evidence is none.
        if groups.is_empty() || none * chance > price {
            groups.push(group);
            none *= 1.0 - chance;
        }
    }
    groups
}

fn words(question: &str) -> Vec<String> {
    let words = question.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Whether nothing is asked: a greeting, thanks, a farewell.
fn is_courtesy(words: &[String]) -> bool {
    const COURTESY: [&str; 22] = [
        "hi",
        "hello",
        "hey",
        "good",
        "morning",
        "afternoon",
        "evening",
        "thanks",
        "thank",
        "you",
        "thx",
        "bye",
        "goodbye",
        "ok",
        "okay",
        "great",
        "cool",
        "very",
        "much",
        "so",
        "please",
        "there",
    ];
    !words.is_empty() && words.len() <= 6 && words.iter().all(|word| COURTESY.contains(&word.as_str()))
}

fn speaks_of_policies(words: &[String]) -> bool {
    const POLICY: [&str; 22] = [
        "return",
        "returns",
        "returned",
        "refund",
        "refunds",
        "refunded",
        "exchange",
        "warranty",
        "guarantee",
        "guaranteed",
        "shipping",
        "ship",
        "ships",
        "shipped",
        "delivery",
        "deliver",
        "delivered",
        "policy",
        "cancel",
        "payment",
        "pay",
        "repair",
    ];
    words.iter().any(|word| POLICY.contains(&word.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn probe(group: Group, passages: usize, similarity: f32) -> Probe {
        Probe { group, passages, similarity: Some(similarity), overlap: similarity.max(0.0) }
    }

    #[test]
    fn rules_come_first() {
        for courtesy in ["Hi!", "Hello there", "Thanks, very much", "ok thank you"] {
            assert_eq!(plan(courtesy, None).groups, [], "{courtesy}");
        }
        for question in
            ["Is it good?", "What do I need for cold weather golf?", "", "thanks, is it waterproof?"]
        {
            assert_eq!(plan(question, None).groups, Group::ALL, "{question}");
        }
        let held = [probe(Group::Reviews, 9, 0.8)];
        assert!(plan("Can I return it?", Some(&held)).groups.contains(&Group::Policy));
        assert!(!plan("Is it warm?", Some(&held)).groups.contains(&Group::Policy));
        // Nothing of the product is known: what the shop says in general is all there is.
        assert_eq!(plan("Is it warm?", Some(&[])).groups, [Group::Policy]);
    }

    #[test]
    fn what_is_near_is_asked_and_what_is_far_is_not() {
        let probes = [
            probe(Group::Attributes, 8, 0.05),
            probe(Group::Description, 1, 0.0),
            probe(Group::Reviews, 5, 0.2),
            probe(Group::Qa, 5, 0.95),
        ];
        let planned = plan("Is it dishwasher safe?", Some(&probes));
        assert!(planned.groups.contains(&Group::Qa), "{planned:?}");
        assert!(!planned.groups.contains(&Group::Description), "{planned:?}");
        let nearer = Probe { similarity: Some(0.9), overlap: 0.9, ..probes[2] };
        let more = plan("Is it dishwasher safe?", Some(&[probes[0], probes[1], nearer, probes[3]]));
        assert!(more.confidence > planned.confidence, "{more:?} {planned:?}");
    }

    proptest! {
        /// The likeliest first is the best set, whatever the chances: against all sets.
        #[test]
        fn the_best_set_is_found(chances in prop::collection::vec(0.0f32..1.0, 1..5), price in 0.001f32..0.5) {
            let chances: Vec<(Group, f32)> = Group::OF_PRODUCTS.into_iter().zip(chances).collect();
            let worth = |groups: &[Group]| {
                let none: f32 =
                    chances.iter().filter(|(g, _)| groups.contains(g)).map(|(_, chance)| 1.0 - chance).product();
                1.0 - none - price * groups.len() as f32
            };
            let found = worth(&best(&chances, price));
            for set in 1..1u32 << chances.len() {
                let groups: Vec<Group> =
                    chances.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, (g, _))| *g).collect();
                prop_assert!(worth(&groups) <= found + 1e-5, "{groups:?} of {chances:?} at {price}");
            }
        }
    }
}
