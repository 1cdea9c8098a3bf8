//! What is taken out and what stays, as tables; and that cuts change nothing, as a property.

use super::*;
use proptest::prelude::*;

fn all<'a>(parts: impl IntoIterator<Item = &'a str>) -> (String, u32, u32) {
    let mut amounts = Amounts::new(Notes::of_locale("en-GB"));
    let mut out = String::new();
    for part in parts {
        out += &amounts.push(part);
    }
    out += &amounts.finish();
    (out, amounts.prices_dropped(), amounts.availability_dropped())
}

/// `{…}` is a price, `<…>` a stock level or a day of delivery.
const TAKEN_OUT: &[&str] = &[
    // Signs, codes, names.
    "It costs {$19.99} today.",
    "It costs {1,299.00 €} now",
    "for {EUR 5}.",
    "for {EUR5}, or {5EUR}.",
    "only {twenty-five US dollars}!",
    "for **{20** dollars}",
    "{20[3] bucks}",
    "{£ 7}",
    "{US$20} and {A$ 30}",
    "{fifty cents}",
    "{five hundred thousand yen} and",
    "{50 pounds sterling}",
    "{٢٠ €}",
    "{$2k or $2 million}",
    "{€20-30}",
    "{$20 to 30}.",
    "{$20–$30}.",
    "between {20 and 30 dollars}",
    "{20 to 30 euros} each",
    "{20-30 €}",
    "{1 299,00 €}",
    "{1'299 CHF}",
    "{49,95 €}",
    "{49,-}",
    "{49,–} bei uns",
    "{20.-} pro Stück",
    "{Rs. 500}",
    "{Fr. 20}",
    "{kr 200}",
    "{200 kr}",
    "{20 zł}",
    "{500 Kč}",
    "{100 TL}",
    "{RM 50}",
    "{Rs 900}",
    "{CHF 20}",
    "{1980円}です",
    "価格は{1980円}です",
    "{20元}",
    "{3만원}입니다",
    "{2万円}です",
    "{USD twenty}",
    "{10 quid}",
    "a {20-dollar} pan",
    "a {30-euro} voucher",
    "{₹499} only",
    "{20 Euro}.",
    "{20 francs} suisses",
    "{20 dólares}",
    "{20 pesos}",
    "{20 SEK}",
    "{nine ninety-nine dollars}",
    // Numbers that a word makes a price.
    "It costs {20}.",
    "It costs about {20}, more or less.",
    "The pan is priced at {19.99}.",
    "The price is {20}.",
    "Price: {20}",
    "| Price | {20} |",
    "The price of this pan is {20}.",
    "It retails for {49}.",
    "It sells for {49} online.",
    "You can have it for under {30}.",
    "You get it for only {25}.",
    "It is on sale for {30}.",
    "It is yours for {30}!",
    "You can buy one for {30} today.",
    "Pans for under {30} are rare.",
    "It will cost you {40}.",
    "It sets you back {40}.",
    "I paid {35} for it.",
    "The MSRP is {59}.",
    "The list price was {59} and",
    "Prices start at {20}.",
    "Prices range from {20 to 30}.",
    "It is available at {30}.",
    "It costs between {20 and 30}.",
    "It costs {twenty}.",
    "It costs {20 pounds}.",
    "It costs {twenty pounds}.",
    "It costs **{20}**.",
    "It costs [1] {20} [2].",
    "Its retail price is {1,299}",
    "It only costs {5} more",
    "It costs {20}including tax.",
    "Er kostet {20}.",
    "Die Pfanne kostet etwa {20}.",
    "Der Preis liegt bei {20}.",
    "Preis: {20,50}",
    "zum Preis von {20}.",
    "für nur {20}.",
    "Elle coûte {20}.",
    "Le prix est de {20}.",
    "Cuesta {20}.",
    "El precio es de {20}.",
    "Costa {20}.",
    "Il prezzo è {20}.",
    "De prijs is {20}.",
    "Custa {20}.",
    "Den kostar {200}.",
    // Discounts.
    "It is {20% off} today.",
    "{20 percent off}",
    "with a {15% discount}",
    "a discount of {15%}.",
    "{10 % Rabatt}",
    "{10 % de descuento}",
    "{10 % de réduction}",
    // Stock.
    "<Only 3 left>!",
    "There are <only 3 left>.",
    "There are <3 left>.",
    "We have <5 left> and",
    "<Only three left in stock>.",
    "<3 left in stock>.",
    "<Only a few left>.",
    "<20 units left>.",
    "<12 in stock>.",
    "It is <in stock>.",
    "It's <in stock> now.",
    "<In stock>.",
    "Yes, <in stock>.",
    "It is currently <in stock>.",
    "It is not <in stock>.",
    "It is <out of stock>.",
    "The red one is <sold out>.",
    "It is <back in stock>!",
    "The <last 3 pieces>!",
    "<Stock is low>.",
    "<Low stock>!",
    "It is <backordered>.",
    "It is <back-ordered>.",
    "It is <on backorder>.",
    "It is <currently unavailable>.",
    "It is <temporarily unavailable>",
    "It is <no longer available>.",
    "It is <available now>.",
    "We are <running low on stock>.",
    "It <ships tomorrow>.",
    "It <ships on Monday>.",
    "It <arrives by Friday>.",
    "It will be <delivered tomorrow>.",
    "<Delivery by Thursday>.",
    "You can <get it by tomorrow>.",
    "It <ships next week>.",
    "Sie ist <auf Lager>.",
    "Sie ist leider <ausverkauft>.",
    "<Nur noch 3 Stück>!",
    "Es sind <nur noch 2 auf Lager>.",
    "<sofort lieferbar>",
    "<Lieferung morgen>",
    "Il est <en stock>.",
    "Il est <en rupture de stock>.",
    "Il n'en <reste que 3>.",
    "Está <agotado>.",
    "Solo <quedan 3>.",
    "È <esaurito>.",
    "Het is <op voorraad>.",
    "Het is <uitverkocht>.",
    "Está <esgotado>",
    "Den finns <i lager>.",
];

const LEFT: &[&str] = &[
    "It weighs 20 pounds.",
    "It weighs 1.4 kg, 3 pounds, and is 20 centimetres wide.",
    "It is 20 cm wide.",
    "It holds 3 cups.",
    "It is rated 4.5.",
    "It is rated 4.5 of 5 by 12 reviewers.",
    "One of two: B01USD, 20 USB ports, 5 audio channels.",
    "In 2024. 12 of 15 reviewers [1][2] liked it; 4.5 of 5",
    "dollars and cents, EUR and $ alone",
    "cents: 5",
    "20 in. pan; ten dollies",
    "$",
    "7",
    "1,",
    "3 to 5 people",
    "between 20 and 30 minutes",
    "from 20 to 30 cm",
    "20-30 W",
    "sizes 4-6",
    "1 299 reviews",
    "12,5 kg",
    "5 000 mAh",
    "It has 2 Euro plugs.",
    "a pack of 2 euro pillow shams",
    "It opens 5 CAD files.",
    "5 sterling silver rings",
    "Sennheiser RS 195 headphones",
    "a COP 4.5 heat pump, RON 95 fuel",
    "a SAR of 1.6 W/kg, SAR 1.6",
    "model TL 5 and TL-36",
    "The Fr 20 is a tent.",
    "100% cotton",
    "20% more suction",
    "20% lighter than before",
    "It saves 20% energy.",
    "up to 20 percent faster",
    "It turns off after 20 minutes.",
    "20 offices use it",
    "Rinse for 20 seconds.",
    "Bake for under 30 minutes.",
    "Soak it for only 5 minutes.",
    "It lasts for over 10 years.",
    "room for 20 people",
    "It is suitable for 3 to 5 people.",
    "a tent for 4",
    "good for 4 and more",
    "It costs time and nerves.",
    "It costs 20 minutes of work.",
    "It costs 3 calories an hour.",
    "worth every cent",
    "It is worth 5 stars.",
    "I have used it for 20 years.",
    "I bought 2 for my kitchen.",
    "I paid attention to 3 things.",
    "They spent 20 minutes on it.",
    "I spent 3 weeks with it.",
    "The price of 3 pans is shown in the cards.",
    "Prices of the 3 pans differ.",
    "It is priced well for its 5 functions.",
    "Two price categories, 3 sizes.",
    "For prices, see the 2 cards.",
    "The price is shown below. 20 reviewers like it.",
    "At a good price. 20 cm wide.",
    "Ask about the cost! 3 people did.",
    "It cost me nothing, 3 times.",
    "the 3 best pans under the sun",
    "It goes up to 250 degrees.",
    "at 20 bar, for sale in 3 colours",
    "available in 3 colours",
    "available in 20 sizes and 3 colours",
    "It is available in blue.",
    "It is currently available in blue and green.",
    "not available for induction",
    "3 available modes",
    "There are 3 available colours.",
    "only 3 available programs",
    "Only 3 of 12 reviewers disliked it.",
    "Turn the 3 left screws.",
    "Use the left handle; 3 left turns.",
    "2 left-handed scissors",
    "Only 2 left-handed scissors are in the set.",
    "What is left over keeps for 3 days.",
    "a stock pot of 5 litres",
    "Cook the rice in stock for 20 minutes.",
    "Simmer it in chicken stock.",
    "stock photos, stockings",
    "Fits in stock bumpers.",
    "It is in stock form 5 cm lower.",
    "low stockings",
    "The low stock pot is light.",
    "He sold 3 of them.",
    "It sells well.",
    "Ships use such rope.",
    "shipping is described in the policy",
    "Orders ship within 2 working days.",
    "Delivery takes 3 to 5 working days.",
    "Returns are accepted within 30 days.",
    "Free delivery on all orders.",
    "Sails and ships on seas.",
    "It arrives well packed.",
    "It arrived broken twice.",
    "Get it wet before use.",
    "Use it today or tomorrow.",
    "On Monday it was 20 degrees.",
    "It is only 3 cm thick.",
    "just 3 buttons",
    "the last 3 years",
    "the last 2 steps",
    "A few left a review.",
    "Only few left a bad review.",
    "The item is back in the box.",
    "She is out of luck.",
    "The cap is on back order-wise rare.",
    "Der Topf wiegt 20 Pfund.",
    "Er hat 3 Lager und 20 Kugeln.",
    "Das Lager ist groß; es liegt auf Lagerböcken.",
    "Nur 3 von 12 mochten ihn.",
    "nur noch 3 Minuten warten",
    "für 4 Personen",
    "ab 20 Grad",
    "Il pèse 20 livres.",
    "plus que 3 fois par semaine",
    "La batterie de 20 heures",
    "Pesa 20 libras.",
    "para 4 personas",
    "日本製で3つあります",
    "重さは20キロです",
    "iPhone 15 Pro, 5G, 4K, 3D",
    "See [1], [2] and [12].",
    "It costs more than [2] says.",
    "The price depends on [1].",
    "It is 3x faster",
    "a 5-star rating, a 2-year warranty",
];

#[test]
fn prices_and_stock_levels_go() {
    assert!(TAKEN_OUT.len() >= 100);
    let mut wrong = Vec::new();
    for case in TAKEN_OUT {
        let text: String = case.chars().filter(|c| !"{}<>".contains(*c)).collect();
        let (mut expected, mut inside, mut counts) = (String::new(), false, (0, 0));
        for c in case.chars() {
            match c {
                '{' => expected += "(see price)",
                '<' => expected += "(see availability)",
                '}' | '>' => {}
                c if !inside => expected.push(c),
                _ => {}
            }
            inside = matches!(c, '{' | '<') || (inside && !matches!(c, '}' | '>'));
            counts.0 += u32::from(c == '{');
            counts.1 += u32::from(c == '<');
        }
        let found = all([text.as_str()]);
        if found != (expected.clone(), counts.0, counts.1) {
            wrong.push(format!("{case:?}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), TAKEN_OUT.len(), wrong.join("\n"));
}

#[test]
fn everything_else_stays() {
    assert!(LEFT.len() >= 100);
    let changed = LEFT.iter().filter(|text| all([**text]) != ((**text).to_owned(), 0, 0));
    let changed: Vec<String> = changed.map(|text| format!("{text:?}: {:?}", all([*text]).0)).collect();
    assert!(changed.is_empty(), "{} of {}:\n{}", changed.len(), LEFT.len(), changed.join("\n"));
}

/// Each by itself, and each character alone.
#[test]
fn no_cut_of_any_example_changes_it() {
    for case in TAKEN_OUT.iter().chain(LEFT) {
        let text: String = case.chars().filter(|c| !"{}<>".contains(*c)).collect();
        let whole = all([text.as_str()]);
        let one_by_one = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        assert_eq!(all(one_by_one), whole, "{text:?}");
        for (at, _) in text.char_indices() {
            assert_eq!(all([&text[..at], &text[at..]]), whole, "{text:?} at {at}");
        }
    }
}

/// A card between a number and its currency does not help.
#[test]
fn an_amount_does_not_come_about_around_a_card() {
    let mut amounts = Amounts::default();
    let out = amounts.push("for 20 EUR19.9") + &amounts.pause() + &amounts.push(" eur.") + &amounts.finish();
    assert_eq!(out, "for 20 … eur.");
    for (before, after, shown) in [
        ("20 ", "dollars.", "20 …."),
        ("EUR", " 5.", "EUR…."),
        ("20", " kg", "20 kg"),
        ("It is in ", "stock.", "It is in …."),
        ("It costs", " 20.", "It costs …."),
    ] {
        let mut amounts = Amounts::default();
        let mut out = amounts.push(before);
        out += &amounts.pause();
        assert_eq!(out, before, "nothing is behind the card that was before it");
        out += &amounts.push(after);
        out += &amounts.finish();
        assert_eq!(out, shown);
    }
}

#[test]
fn notes_speak_the_shoppers_language() {
    for (locale, price) in [
        ("de-AT", "(siehe Preis)"),
        ("fr", "(voir le prix)"),
        ("en-US", "(see price)"),
        ("xx", "(see price)"),
        ("", "(see price)"),
    ] {
        assert_eq!(Notes::of_locale(locale).price, price);
    }
    assert_eq!(Notes::default(), Notes { price: "…", availability: "…" });
    let mut amounts = Amounts::new(Notes::of_locale("en"));
    // What is left of a word does not run into the note.
    let out = amounts.push("EUR") + &amounts.pause() + &amounts.push(" 5") + &amounts.finish();
    assert_eq!(out, "EUR (see price)");
}

fn texts() -> impl Strategy<Value = String> {
    let words = vec![
        "$",
        "€",
        "USD",
        "eur ",
        " dollars",
        "cents",
        " twenty",
        "us ",
        "[1]",
        "**",
        "-",
        " ",
        " costs ",
        "price ",
        " is ",
        "for ",
        "under ",
        " only ",
        " left",
        " in stock",
        "in ",
        "stock",
        " out of ",
        "sold ",
        " ships ",
        "tomorrow",
        " to ",
        " and ",
        "% ",
        "off ",
        ",-",
        ". ",
        " pounds",
        " kg",
        "円",
        "–",
        " a few ",
    ];
    let part = prop_oneof![
        3 => "[ a-z.]{0,6}",
        3 => "[0-9]{1,3}([., ][0-9]{1,3})?",
        4 => prop::sample::select(words).prop_map(str::to_owned),
        1 => "[a-zé日🦀 ]{0,4}",
        1 => prop::sample::select(TAKEN_OUT.to_vec()).prop_map(|text| text.replace(['{', '}', '<', '>'], "")),
        // Longer than what is looked at.
        1 => (35usize..50).prop_map(|n| " twenty".repeat(n)),
        1 => (240usize..270).prop_map(|n| " ".repeat(n)),
    ];
    prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..Default::default() })]

    #[test]
    fn cuts_change_nothing_and_no_amount_is_left(text in texts(), cuts in prop::collection::vec(0usize..600, 0..16)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).filter(|&c| text.is_char_boundary(c)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let whole = all([text.as_str()]);
        prop_assert_eq!(&all(cuts.windows(2).map(|w| &text[w[0]..w[1]])), &whole);
        prop_assert!(whole.1 + whole.2 > 0 || whole.0 == text);
        // By rules of its own, on what is not longer than what is looked at.
        let left = regex::Regex::new(
            r"(?i)[$€] ?[0-9]|\b(usd|eur) ?[0-9]|\b[0-9]+ ?([$€]|(usd|eur|dollars|cents)\b)|\bout of stock\b|\bsold out\b|\bcosts [0-9]+\.([^0-9]|$)|\bcosts [0-9][0-9.]*tomorrow",
        ).unwrap();
        prop_assert!(!left.is_match(&whole.0), "{:?} of {:?}", whole.0, text);
    }

    /// What is held back is bounded, whatever comes.
    #[test]
    fn little_is_held_back(text in texts()) {
        let mut amounts = Amounts::default();
        for c in text.chars() {
            amounts.push(c.encode_utf8(&mut [0; 4]));
            prop_assert!(amounts.held.len() <= MOST);
        }
    }
}
