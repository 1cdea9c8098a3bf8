//! What a question is about, as far as its words alone tell. Where the words leave it open whether an answer is for this
//! shopper alone, it is taken to be: that costs a look into the cache, the other mistake shows one shopper's answer to
//! another.

fn words(question: &str) -> Vec<String> {
    let words = question.split(|c: char| !c.is_alphanumeric() && c != '-');
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Whether a question speaks of what was spoken of before.
pub(super) fn refers_back(question: &str) -> bool {
    let back =
        ["it", "its", "this", "that", "these", "those", "they", "them", "their", "one", "ones", "both"];
    words(question).iter().any(|word| back.contains(&word.as_str()))
}

/// Whether it asks for an order of the shopper's.
pub(super) fn is_about_orders(question: &str) -> bool {
    let words = words(question);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    let thing = ["order", "orders", "package", "parcel", "shipment", "delivery"];
    let digits = |word: &String| word.bytes().filter(u8::is_ascii_digit).count() >= 5;
    // "order number 10042": the number is near, or it is of something else.
    let numbered = words
        .iter()
        .enumerate()
        .any(|(at, word)| thing.contains(&word.as_str()) && words[at + 1..].iter().take(3).any(digits));
    has(&["ordered"]) || numbered || (has(&["my", "our", "track", "tracking"]) && has(&thing))
}

/// Whether it asks what others think.
pub(super) fn asks_for_opinions(question: &str) -> bool {
    let words = words(question);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    has(&["review", "reviews", "opinion", "opinions", "complaints", "complain"])
        || (has(&["people", "customers", "buyers", "others"]) && has(&["say", "think", "like", "dislike"]))
}

/// What looks like the number of an order in the shopper's own words.
pub(super) fn order_number(question: &str) -> Option<String> {
    let digits = |word: &&str| word.bytes().filter(u8::is_ascii_digit).count() >= 4;
    let tidy = |word: &'_ str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
    let plain =
        |word: &String| word.len() <= 64 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    question.split_whitespace().filter(digits).map(tidy).find(plain)
}

/// What is somebody's own, by itself.
const OWN: &[&str] = &[
    "my",
    "mine",
    "our",
    "ours",
    "myself",
    "ourselves",
    "mein",
    "meine",
    "meinen",
    "meinem",
    "meiner",
    "mir",
    "mich",
    "unser",
    "unsere",
    "unserem",
    "unseren",
    "mon",
    "ma",
    "mes",
    "moi",
    "notre",
    "nos",
    "mi",
    "mis",
    "mio",
    "mia",
    "miei",
    "mie",
    "nuestro",
    "nuestra",
    "nostro",
    "nostra",
    "mijn",
    "onze",
    "ons",
    "meu",
    "minha",
    "meus",
    "minhas",
    "min",
    "mitt",
    "мой",
    "моя",
    "моё",
    "мне",
    "меня",
    // What somebody has an account for, or tells of their health.
    "account",
    "password",
    "login",
    "log-in",
    "invoice",
    "receipt",
    "refund",
    "membership",
    "subscription",
    "address",
    "konto",
    "rechnung",
    "compte",
    "cuenta",
    "allergic",
    "allergy",
    "allergies",
    "pregnant",
    "diabetic",
    "celiac",
    "coeliac",
    "allergisch",
    "schwanger",
    "allergique",
    "enceinte",
    "alérgico",
    "alérgica",
    "embarazada",
];
/// Who speaks, unless only by a manner of speaking.
const SPEAKERS: &[&str] = &["i", "we", "ich", "wir", "je", "j", "nous", "yo", "ik", "wij", "я", "мы"];
/// Behind these one's own person is anybody's: "can I put it into the dishwasher?"
const ANYBODY: &[&str] = &[
    "can", "could", "do", "should", "must", "may", "might", "will", "would", "shall", "if", "when", "kann",
    "können", "soll", "sollte", "muss", "darf", "wenn", "puis", "peux", "dois", "si", "kan", "moet", "mag",
];
/// Behind these, "me" is who asks and no more.
const TELL: &[&str] =
    &["tell", "show", "give", "recommend", "help", "suggest", "find", "remind", "explain", "let"];
/// Before these it is somebody in particular nevertheless: "do I have", "will I get".
const TOLD: &[&str] = &["have", "had", "own", "owe", "get", "still", "qualify", "order", "cancel"];

/// Whether the answer may hold for this shopper only: the question speaks of them, of what is theirs, or names what
/// could be a number, an address or a name of theirs.
pub(super) fn is_personal(question: &str) -> bool {
    if is_about_orders(question) || question.contains('@') {
        return true;
    }
    let words = words(question);
    let digits = |word: &String| word.bytes().filter(u8::is_ascii_digit).count() >= 5;
    // A telephone's number may be written in groups.
    let figures = |word: &&String| word.len() >= 2 && word.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if words.iter().any(digits) || words.iter().filter(figures).map(|word| word.len()).sum::<usize>() >= 8 {
        return true;
    }
    words.iter().enumerate().any(|(at, word)| {
        let before = at.checked_sub(1).map_or("", |at| words[at].as_str());
        let after = words.get(at + 1).map_or("", String::as_str);
        match word.as_str() {
            "me" | "us" => !TELL.contains(&before) && !matches!(before, "in" | "the"),
            word if SPEAKERS.contains(&word) => !ANYBODY.contains(&before) || TOLD.contains(&after),
            word => OWN.contains(&word),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_understood() {
        assert_eq!(order_number("Where is my order #A-12345?").as_deref(), Some("A-12345"));
        assert_eq!(order_number("Where is my order?"), None);
        assert!(is_about_orders("Where is my order?") && !is_about_orders("In what order do I assemble it?"));
        assert!(is_about_orders("Status of order 10042?") && !is_about_orders("Can I order 2000 pieces?"));
        assert!(refers_back("Is it safe?") && !refers_back("Is the pan safe?"));
        assert!(asks_for_opinions("What do people say?") && !asks_for_opinions("Is the pan safe?"));
    }

    #[test]
    fn what_is_for_one_shopper_only() {
        for question in [
            "Where is my order?",
            "What did I order last week?",
            "Status of order 10042",
            "Track the parcel 1Z99999",
            "I'm allergic to nuts, is it safe?",
            "Is it safe? I am pregnant.",
            "Allergic to nickel: is this pan safe?",
            "We have two cats.",
            "Does it fit me?",
            "Will it fit my car?",
            "Is this right for our kitchen?",
            "Do I have points left?",
            "Will I get a refund?",
            "How do I change the password?",
            "What is on the account?",
            "Send it to jo@example.org",
            "Call 0171 555 1234",
            "Is 4111111111111111 charged?",
            "Passt sie in meine Küche?",
            "Ich habe eine Nickelallergie",
            "Est-ce bon pour ma fille ?",
            "J'ai deux chats",
            "¿Sirve para mi coche?",
            "È adatto a mia figlia?",
            "Past het in mijn keuken?",
        ] {
            assert!(is_personal(question), "{question}");
        }
        for question in [
            "Is the pan dishwasher-safe?",
            "Can I put it in the dishwasher?",
            "How should I clean it?",
            "What happens if I drop it?",
            "Tell me about the pan.",
            "Show us two pans",
            "What do people say?",
            "Which of the 12 pans is 28 cm wide?",
            "Is it better than the WH-1000?",
            "Kann ich sie in die Spülmaschine geben?",
            "What is the return policy?",
            "In what order is it assembled?",
        ] {
            assert!(!is_personal(question), "{question}");
        }
    }
}
