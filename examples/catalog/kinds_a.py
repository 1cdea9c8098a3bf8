"""Kinds of products, first half. See make.py for the notation."""

KINDS = [
    dict(
        prefix="KP", path=["Kitchen", "Cookware", "Frying pans"], noun="frying pan",
        keys="material diameter_cm weight_g induction dishwasher_safe oven_safe_c",
        models="""
Fjelltun|Smed 24|3990|carbon steel,24,1280,yes,no,300
Fjelltun|Smed 28|4990|carbon steel,28,1690,yes,no,300
Ostara|Leichtkern 28|2790|aluminium with ceramic coating,28,860,no,no,180
Ostara|Leichtkern Induct 28|3490|aluminium with ceramic coating,28,980,yes,no,180
Brennholt|Hearth 26|2990|cast iron,26,2450,yes,no,260
Marisol|Prima 3-ply 28|8900|stainless steel,28,1420,yes,yes,250
""",
        text="A {diameter_cm} cm frying pan of {material} that weighs {weight_g} g. {material=carbon steel?It arrives pre-seasoned with linseed oil and darkens with use; the more you fry in it, the less sticks.|}{material=cast iron?Thick walls hold their heat when cold food goes in, so steaks brown instead of stewing.|}{material=stainless steel?An aluminium core between two layers of steel spreads the heat right up the sides.|}{material=aluminium with ceramic coating?The coating contains no PTFE and releases eggs with very little fat, on low to medium heat.|} Good in the oven up to {oven_safe_c} °C.",
        bullets=["Oven-safe to {oven_safe_c} °C", "{induction=yes?Works on every hob, induction included|For gas, electric and glass-ceramic hobs; not for induction}", "{dishwasher_safe=yes?Can go in the dishwasher|Wash by hand}", "Handle angled so that you can toss with one hand"],
        pos=["Eggs slide around after about {~2-5} weeks of regular use.", "Heats evenly all the way to the edge on my gas hob.", "{induction=yes?My induction hob recognises it at once and it does not hum.|}", "At {weight_g} g it has a good weight without tiring my wrist.", "{material=carbon steel?Seasoned it twice more in the oven and it has become properly non-stick.|}", "{material=cast iron?Best crust on a steak I have had at home.|}", "The handle stays cool enough to hold for the first ten minutes.", "Easy to clean with hot water and a brush.", "{oven_safe_c>200?Goes from hob to oven for frittata without any worry.|}"],
        neg=["{dishwasher_safe=no?Went in the dishwasher once by mistake and came out with stains.|}", "{weight_g>1600?Too heavy for me to lift with one hand when it is full.|}", "The rim drips when you pour.", "{induction=no?Did not notice that it is not for induction and had to send it back.|}", "Arrived with a small dent in the rim.", "{material=aluminium with ceramic coating?After a year of daily use the coating has lost its slip.|}"],
        qa=[("Is this pan dishwasher-safe?", "{dishwasher_safe=yes?Yes, mine goes in the dishwasher every other day and still looks fine.|No. Wash it by hand and dry it straight away, the dishwasher ruins the surface.}"),
            ("Does it work on an induction hob?", "{induction=yes?Yes, the base is magnetic. I use it on induction every day.|No, the base is not magnetic. It works on gas and glass-ceramic.}"),
            ("How heavy is it?", "{weight_g} g on my kitchen scale, without a lid."),
            ("Can it go in the oven?", "Yes, up to {oven_safe_c} °C according to the leaflet.")]),
    dict(
        prefix="KK", path=["Kitchen", "Knives", "Chef's knives"], noun="chef's knife",
        keys="blade_material blade_cm hardness_hrc weight_g handle dishwasher_safe",
        models="""
Kagerou|Gyuto 210|11900|VG10 steel,21,60,182,pakkawood,no
Kagerou|Santoku 165|9900|VG10 steel,16.5,60,156,pakkawood,no
Ostara|Basis 20|2490|X50CrMoV15 steel,20,56,205,plastic,no
Brennholt|Forge 20|6900|X50CrMoV15 steel,20,57,248,beech,no
Marisol|Linea 18|3990|420 steel,18,55,170,stainless steel,yes
""",
        text="A chef's knife with a {blade_cm} cm blade of {blade_material}, hardened to {hardness_hrc} HRC, and a handle of {handle}. {hardness_hrc>58?The hard, thin edge stays sharp for months and wants a whetstone, not a pull-through sharpener.|The tough steel forgives a hard chopping board and sharpens quickly on a honing rod.}",
        bullets=["Blade {blade_cm} cm, {hardness_hrc} HRC", "Handle: {handle}", "{dishwasher_safe=yes?Dishwasher-safe|Hand wash only}", "Weighs {weight_g} g"],
        pos=["Goes through ripe tomatoes without pressing.", "Came razor sharp out of the box.", "{hardness_hrc>58?Three months of daily cooking and I have only stropped it.|}", "Balanced right at the bolster, so it feels lighter than {weight_g} g.", "{handle=pakkawood?The handle is beautiful and does not get slippery.|}", "{hardness_hrc>58?|Two minutes on the steel and it is sharp again.}", "The box it comes in makes it a good present.", "The spine is rounded, so no blister on the finger."],
        neg=["{hardness_hrc>58?Chipped a little when I hit a chicken bone.|Loses its edge after a couple of weeks.}", "{weight_g>220?Too heavy for small hands.|Feels a bit light for squash.}", "{handle=plastic?The handle looks cheap next to my other knives.|}", "The blade spotted when I left it wet over night.", "The blade guard is missing in the box, although the picture shows one."],
        qa=[("Can I put it in the dishwasher?", "{dishwasher_safe=yes?Yes, it is one piece of steel. I do, and it is fine, though it needs sharpening sooner.|Please do not. The edge and the {handle} handle both suffer.}"),
            ("How do I sharpen this knife?", "{hardness_hrc>58?On a whetstone, 1000 then 3000 grit, at about 15 degrees a side. No pull-through sharpeners.|A honing rod once a week and a whetstone twice a year are enough.}"),
            ("Is it good for left-handed people?", "Yes, the edge is ground the same on both sides.")]),
    dict(
        prefix="KC", path=["Kitchen", "Coffee", "Coffee makers"], noun="coffee maker",
        keys="type capacity_cups power_w thermos_jug timer weight_kg",
        models="""
Lunamara|Filtro 10|5990|drip coffee maker,10,1000,no,yes,2.1
Lunamara|Filtro Thermo 8|8990|drip coffee maker,8,1000,yes,yes,2.6
Ostara|Morgen 12|3490|drip coffee maker,12,900,no,no,1.8
Marisol|Bella 6|2990|stovetop moka pot,6,0,no,no,0.6
Marisol|Bella 3|2290|stovetop moka pot,3,0,no,no,0.4
Kagerou|Stempel 8|3290|French press,8,0,no,no,0.9
""",
        text="A {type} for {capacity_cups} cups. {power_w>0?Its {power_w} W heater brings the water to 93 °C and wets the coffee evenly from a wide shower head. |It needs no electricity. }{thermos_jug=yes?The steel jug keeps coffee hot for about four hours without a hot plate.|}{timer=yes? Set the timer in the evening and wake up to coffee.|}",
        bullets=["Makes {capacity_cups} cups", "{thermos_jug=yes?Insulated steel jug|}", "{timer=yes?24-hour timer|}", "{power_w>0?{power_w} W, switches itself off after 40 minutes|No plug needed: also for camping}"],
        pos=["{timer=yes?The timer is the best part, coffee is ready when I get up.|}", "{thermos_jug=yes?Coffee from seven in the morning is still hot at eleven.|}", "Tastes fuller than from my old machine.", "{type=stovetop moka pot?Strong, dark and done in five minutes on the small burner.|}", "{type=French press?The sieve fits tightly, there is hardly any sediment.|}", "Easy to clean, everything comes apart.", "Exactly right for {capacity_cups} small cups.", "Looks good enough to leave on the table."],
        neg=["{power_w>0?The cable is only 80 cm long.|}", "{thermos_jug=yes?The last cup does not come out of the jug unless you unscrew the lid.|}", "{type=stovetop moka pot?Not for induction without an adapter plate, which nobody tells you.|}", "The lid feels loose.", "{power_w>0?The descaling light came on after six weeks.|The gasket had to be replaced after a year.}", "Cups are small: {capacity_cups} of them are {capacity_cups*0.125:.2g} litres at best."],
        qa=[("How many mugs does it really make?", "It is marked for {capacity_cups} cups of 125 ml. With big mugs count on about half of that."),
            ("Does it work on induction?", "{type=stovetop moka pot?Not by itself, the pot is aluminium. You need an adapter plate.|It is not a stovetop pot, so the hob does not matter.}"),
            ("Does it keep the coffee hot?", "{thermos_jug=yes?Yes, about four hours in the insulated jug.|{power_w>0?For 40 minutes on the hot plate, then it switches off.|No, drink it or pour it into a flask.}}")]),
    dict(
        prefix="SG", path=["Sport", "Golf", "Golf gloves"], noun="golf gloves",
        keys="season material waterproof pair touchscreen sizes",
        models="""
Nordlinks|Frost Grip|2990|winter,fleece-lined synthetic leather,no,yes,yes,S to XL
Nordlinks|Storm Grip|2490|rain,quick-dry microfibre,no,yes,no,S to XXL
Nordlinks|Cabretta One|1990|summer,cabretta leather,no,no,no,S to XL
Aldergate|Arctic Pair|3490|winter,windproof softshell,yes,yes,yes,M to XL
Aldergate|All-Season|1490|all year,synthetic leather,no,no,no,S to XL
""",
        text="Golf gloves for {season=all year?the whole year|{season} golf}, of {material}, in sizes {sizes}. {pair=yes?Sold as a pair.|One glove, for the left hand.} {season=winter?The palm is thin enough to feel the club, the back is insulated down to about -5 °C.|}{season=rain?The wetter they get, the better the palm grips.|}",
        bullets=["{pair=yes?A pair|One glove (left hand)}", "{season=winter?Warm down to about -5 °C|}", "{waterproof=yes?Waterproof|Not waterproof}", "{touchscreen=yes?Index finger works on touchscreens|}"],
        pos=["{season=winter?Played eighteen holes at two degrees and my fingers stayed warm.|}", "{season=rain?In pouring rain the club did not slip once.|}", "Fit is snug without being tight.", "{touchscreen=yes?I can use the GPS on my phone without taking them off.|}", "{season=winter?Thin enough that I still feel the grip when chipping.|}", "{season=summer?Soft as a second skin.|}", "Still no holes after {~15-40} rounds."],
        neg=["Runs small, take one size up.", "{waterproof=no?Soaked through after an hour of drizzle.|A little stiff at first.}", "{season=winter?Too thick for putting, I take the right one off.|Worn through at the heel of the hand after ten rounds.}", "{pair=no?I expected two gloves and got one.|}", "The hook-and-loop tab started to fray."],
        qa=[("Are these warm enough for winter golf?", "{season=winter?Yes, down to a few degrees below zero when you keep walking.|Not really. They are not lined; I would look at winter gloves.}"),
            ("Is it a pair or one glove?", "{pair=yes?It is a pair.|Just one, for the left hand.}"),
            ("Do they grip in the rain?", "{season=rain?Yes, that is what they are made for.|{waterproof=yes?Yes, they are waterproof.|In light rain they do; when soaked they get slippery.}}")]),
    dict(
        prefix="SJ", path=["Sport", "Golf", "Golf outerwear"], noun="golf layer",
        keys="type waterproof_mm insulation weight_g stretch fit",
        models="""
Aldergate|Highmoor Rain Jacket|12900|rain jacket,15000,none,340,yes,men
Aldergate|Highmoor Rain Jacket W|12900|rain jacket,15000,none,310,yes,women
Nordlinks|Thermo Quarter-Zip|7900|midlayer,0,brushed fleece,290,yes,unisex
Nordlinks|Frost Vest|8900|vest,0,60 g recycled fill,260,yes,unisex
Nordlinks|Links Rain Trousers|9900|rain trousers,10000,none,280,yes,unisex
Kaldvik|Merino Base 200|6900|base layer,0,200 g/m² merino,210,yes,unisex
""",
        text="A {type} cut for the golf swing. {waterproof_mm>0?The three-layer fabric withstands a water column of {waterproof_mm} mm and its seams are taped; it rustles very little. |}{insulation=none?|It warms with {insulation} and still lets the shoulders turn. }It weighs {weight_g} g. {type=base layer?Worn next to the skin it keeps you dry on the walk and warm on the tee.|}{type=vest?Free arms, warm core: the layer for frosty mornings.|}",
        bullets=["{waterproof_mm>0?Waterproof to {waterproof_mm} mm, taped seams|Not waterproof: wear it under a rain jacket}", "{insulation=none?No insulation: wear layers under it|Insulation: {insulation}}", "Stretches with the swing", "Fit: {fit}"],
        pos=["{waterproof_mm>0?Two hours of steady rain and I was dry underneath.|}", "No pull across the shoulders at the top of the backswing.", "{type=base layer?Does not itch and does not smell after two rounds.|}", "{type=vest?Perfect over a base layer for a cold morning round.|}", "{type=midlayer?Warm without bulk, I wear it off the course too.|}", "{waterproof_mm>0?Quiet fabric, my old one rustled in the backswing.|Packs small enough for the side pocket of the bag.}", "Sleeves keep their place when you push them up."],
        neg=["{waterproof_mm>0?Gets clammy on uphill holes.|}", "{insulation=none?Not warm by itself, plan a layer underneath.|}", "Sizes run large, I exchanged for one smaller.", "{type=base layer?Got a small hole at the seam after a month.|The zip catches on the lining.}", "Only one pocket, and it is too small for a scorecard."],
        qa=[("Is it waterproof?", "{waterproof_mm>0?Yes, {waterproof_mm} mm water column and taped seams.|No, it keeps you warm, not dry.}"),
            ("Is it warm enough for winter rounds?", "{insulation=none?On its own no, it only keeps wind and rain out. With a base layer and a midlayer it is fine.|As one of the layers yes. In wind add a jacket on top.}"),
            ("Can you swing in it?", "Yes, it stretches across the back and does not pull.")]),
    dict(
        prefix="SB", path=["Sport", "Golf", "Golf balls and accessories"], noun="golf accessory",
        keys="type compression pieces_in_pack rechargeable runtime_h colour",
        models="""
Nordlinks|Soft 60 dozen|2490|golf balls,60,12,no,0,white
Nordlinks|Soft 60 Signal dozen|2490|golf balls,60,12,no,0,matte orange
Aldergate|Tour 90 dozen|4290|golf balls,90,12,no,0,white
Kaldvik|Ember hand warmer|3290|electric hand warmer,0,2,yes,7,graphite
Kaldvik|Glow sachets 20|1490|single-use hand warmer,0,20,no,9,white
Aldergate|Winter tees 40|690|tees,0,40,no,0,red
""",
        text="{type=golf balls?A dozen golf balls with a compression of {compression}. {compression<70?Soft balls like these keep their feel and carry when it is cold, when hard ones turn to stones.|Made for fast swings in warm weather.}|}{type=electric hand warmer?Two rechargeable hand warmers that snap together, for up to {runtime_h} hours on the low setting.|}{type=single-use hand warmer?Twenty air-activated sachets; each stays warm for about {runtime_h} hours in a pocket or a glove.|}{type=tees?Forty short steel-tipped tees that go into frozen ground.|} Colour: {colour}.",
        bullets=["{compression>0?Compression {compression}|}", "{runtime_h>0?Warm for up to {runtime_h} hours|}", "{pieces_in_pack} in the pack", "{colour=matte orange?Easy to find on frost and leaves|}"],
        pos=["{colour=matte orange?Found every single one in the leaves.|}", "{compression<70&compression>0?In the cold these still feel soft off the putter.|}", "{type=electric hand warmer?One charge lasts for eighteen holes on low.|}", "{type=single-use hand warmer?Put one in each pocket, warm until the last hole.|}", "{type=tees?Go into frozen ground without breaking.|}", "Good value for {pieces_in_pack} pieces."],
        neg=["{compression>70?Feels like hitting a rock below ten degrees.|}", "{type=electric hand warmer?On the high setting it is empty after three hours.|}", "{type=single-use hand warmer?Two of twenty did not get warm.|}", "{type=golf balls?Scuffs quickly on cart paths.|The packaging was torn.}"],
        qa=[("Is this any good in cold weather?", "{type=golf balls?{compression<70?Yes, low compression is what you want in winter.|Not the best choice, they get very hard in the cold.}|Yes, that is what it is for.}"),
            ("How many are in the pack?", "{pieces_in_pack}.")]),
    dict(
        prefix="AH", path=["Electronics", "Headphones", "Over-ear headphones"], noun="headphones",
        keys="noise_cancelling battery_h weight_g bluetooth wired foldable",
        models="""
Sonvale|Quiet 700|24900|yes,38,254,5.3,yes,yes
Sonvale|Quiet 500|15900|yes,30,236,5.2,yes,yes
Tonfeld|Studio 40|9900|no,0,268,none,yes,no
Tonfeld|Air 60|7990|no,50,218,5.3,no,yes
Orbita|Kids Safe|3990|no,24,170,5.0,yes,yes
Orbita|Commute ANC|8990|yes,28,228,5.3,no,yes
""",
        text="{bluetooth=none?Wired|Wireless} over-ear headphones of {weight_g} g. {noise_cancelling=yes?Active noise cancelling takes away the hum of engines and air conditioning. |}{battery_h>0?The battery lasts for {battery_h} hours of music. |}{bluetooth=none?Closed back, flat response, three metres of detachable cable.|}{wired=yes?{bluetooth=none?| A 3.5 mm cable is included for aeroplane sockets.}|There is no socket for a cable.}",
        bullets=["{noise_cancelling=yes?Active noise cancelling|Passive isolation only}", "{battery_h>0?{battery_h} hours of battery|}", "{foldable=yes?Folds into a hard case|}", "{wired=yes?Works with a cable, too|Bluetooth only}"],
        pos=["{noise_cancelling=yes?On a nine-hour flight the engine was reduced to a whisper.|}", "{battery_h>25?Charged once in a week of commuting.|}", "Comfortable for hours, also with glasses.", "{bluetooth=none?Honest sound, exactly what I need for editing.|Voices in calls are clear.}", "{foldable=yes?Folds small enough for a coat pocket.|}", "Soft ear pads that do not get hot.", "Pairing took ten seconds."],
        neg=["{noise_cancelling=yes?Wind makes the microphones rumble.|No noise cancelling, you hear the train.}", "{weight_g>250?After three hours I feel the weight on top of my head.|The headband creaks.}", "{wired=no?No cable socket, so no use with the screen on a plane.|The included cable is short.}", "The app wants an account.", "Tight at first on a large head."],
        qa=[("Are these good for long flights?", "{noise_cancelling=yes?Yes, noise cancelling and {battery_h} hours of battery. {wired=yes?The cable fits the seat's socket.|But there is no cable for the seat's screen.}|They are comfortable, but without noise cancelling you hear the engines.}"),
            ("How long does the battery last?", "{battery_h>0?I get about {battery_h} hours at medium volume.|There is none, they are wired.}"),
            ("Can I use them with a cable?", "{wired=yes?Yes, 3.5 mm, and the cable is in the box.|No, Bluetooth only.}")]),
    dict(
        prefix="AS", path=["Electronics", "Audio", "Bluetooth speakers"], noun="bluetooth speaker",
        keys="power_w battery_h ip_rating weight_g stereo_pair usb_charging_out",
        models="""
Tonfeld|Kiesel|4990|8,12,IP67,310,yes,no
Tonfeld|Findling|12900|30,20,IP67,1150,yes,yes
Sonvale|Terrace 2|17900|45,16,IPX4,2300,yes,yes
Orbita|Clip|2490|4,9,IP67,140,no,no
Orbita|Shelf|6990|20,0,none,1650,yes,no
""",
        text="A {power_w} W Bluetooth speaker of {weight_g} g. {battery_h>0?It plays for {battery_h} hours on a charge. |It runs on mains power. }{ip_rating=IP67?Dust and a dip in the pool do it no harm (IP67). |}{ip_rating=IPX4?Splashes do it no harm (IPX4), a pool does. |}{ip_rating=none?It belongs indoors. |}{stereo_pair=yes?Two of them make a stereo pair.|}",
        bullets=["{power_w} W", "{battery_h>0?{battery_h} hours of battery|Mains powered}", "{ip_rating=none?Indoor use only|Protection: {ip_rating}}", "{usb_charging_out=yes?Charges your phone from its own battery|}"],
        pos=["{ip_rating=IP67?Fell into the lake, floated, kept playing.|}", "Louder than its size suggests.", "{power_w>25?Enough bass for the whole garden.|}", "{battery_h>15?Lasted the whole festival day.|}", "{stereo_pair=yes?Two of them in stereo are a joy.|}", "{weight_g<400?So light that it lives on my backpack.|}", "The buttons can be found without looking."],
        neg=["{power_w<10?Do not expect bass.|}", "{ip_rating=IP67?|Too bad that it is not waterproof.}", "{battery_h>0?At full volume the battery lasts half as long as stated.|A battery would have been nice.}", "The power-on jingle cannot be switched off.", "Takes four hours to charge."],
        qa=[("Is it waterproof?", "{ip_rating=IP67?Yes, IP67, it survives half an hour at one metre.|{ip_rating=IPX4?Splash-proof only, keep it out of the pool.|No, use it indoors.}}"),
            ("How long does it play?", "{battery_h>0?About {battery_h} hours at half volume.|It has no battery, it plays as long as it is plugged in.}"),
            ("Can I pair two for stereo?", "{stereo_pair=yes?Yes, hold the Bluetooth button on both.|No, this model cannot.}")]),
    dict(
        prefix="OT", path=["Outdoor", "Camping", "Tents"], noun="tent",
        keys="persons weight_kg season water_column_mm porch setup_min",
        models="""
Kaldvik|Vidde 2|27900|2,2.1,3 seasons,3000,yes,8
Kaldvik|Vidde 3|32900|3,2.8,3 seasons,3000,yes,10
Kaldvik|Polar 2|54900|2,3.4,4 seasons,5000,yes,12
Wanderbrook|Meadow 4|17900|4,6.9,summer,2000,yes,15
Wanderbrook|Solo|12900|1,1.3,3 seasons,2500,no,6
Wanderbrook|Quick 2|7900|2,3.1,summer,1500,no,1
""",
        text="A tent for {persons=1?one person|{persons} people} and {season=4 seasons?all four seasons, snow included|{season=summer?summer weather|spring to autumn}}. It weighs {weight_kg} kg, its flysheet withstands {water_column_mm} mm of water, and it stands after about {setup_min=1?one minute|{setup_min} minutes}. {porch=yes?The porch takes boots and rucksacks.|There is no porch.}",
        bullets=["Sleeps {persons}", "{weight_kg} kg packed", "Flysheet {water_column_mm} mm", "{porch=yes?With porch|Without porch}"],
        pos=["Stayed dry in a night of heavy rain.", "{setup_min<9?Up in {setup_min=1?a minute|{setup_min} minutes}, even the first time.|}", "{weight_kg<2.2?Light enough for a week on foot.|}", "{season=4 seasons?Stood like a rock in a storm above the tree line.|}", "{porch=yes?The porch swallows two rucksacks.|}", "Hardly any condensation with both vents open.", "Seams and pegs are well made."],
        neg=["{persons>1?For {persons} people only if they like one another.|Narrow for broad shoulders.}", "{weight_kg>3?Too heavy to carry far.|The floor is thin, take a groundsheet.}", "{setup_min=1?Folding it back into its bag is an art.|The pegs bend in stony ground.}", "{season=summer?Water came through the seams in the second storm.|}", "{porch=no?No porch, so wet boots sleep inside.|}"],
        qa=[("Can I use it in snow?", "{season=4 seasons?Yes, that is what it is made for.|No, the poles are not meant for a load of snow.}"),
            ("How heavy is it?", "{weight_kg} kg with pegs and bag."),
            ("Does it stand up to heavy rain?", "{water_column_mm>2900?Yes, {water_column_mm} mm and taped seams. Never had a drop inside.|A shower, yes. For days of rain I would take one with more than {water_column_mm} mm.}")]),
    dict(
        prefix="OS", path=["Outdoor", "Camping", "Sleeping bags"], noun="sleeping bag",
        keys="fill comfort_c limit_c weight_g packed_litres length_cm",
        models="""
Kaldvik|Dun 0|24900|duck down 700 cuin,2,-4,890,5.5,195
Kaldvik|Dun -10|34900|goose down 800 cuin,-6,-13,1180,8,195
Wanderbrook|Syn 5|6990|synthetic,8,3,1050,9,190
Wanderbrook|Syn 0|8990|synthetic,3,-2,1450,13,200
Wanderbrook|Cub|4990|synthetic,9,5,780,8,150
""",
        text="A sleeping bag filled with {fill}, comfortable down to {comfort_c} °C (limit {limit_c} °C, EN ISO 23537). It weighs {weight_g} g, packs to {packed_litres} litres and is {length_cm} cm long inside. {fill=synthetic?Synthetic fill warms when damp and can be machine-washed.|The down is traceable and should be kept dry.}",
        bullets=["Comfort {comfort_c} °C, limit {limit_c} °C", "{weight_g} g", "Packs to {packed_litres} litres", "{length_cm<160?For children up to 140 cm|}"],
        pos=["{comfort_c<3?Slept warm with frost on the tent.|Just right for summer nights.}", "{weight_g<1000?Hardly notice it in the rucksack.|}", "The zip does not catch the lining.", "{fill=synthetic?Came out of the washing machine like new.|Lofts up within minutes.}", "The hood closes well around the face.", "{length_cm<160?My daughter did not want to get out of it again.|}"],
        neg=["{comfort_c>7?Far too cold for September in the hills.|}", "{fill=synthetic?Bulky: {packed_litres} litres is a lot of rucksack.|You have to be careful to keep the down dry.}", "A few feathers or fibres came out at first.", "{length_cm>180?Tight around the shoulders if you turn a lot.|}"],
        qa=[("What temperature is it good for?", "Comfort is {comfort_c} °C. At {limit_c} °C I would be cold."),
            ("Can it be machine-washed?", "{fill=synthetic?Yes, 30 °C, gentle, no softener.|Only with down detergent in a big machine, and then tumble dry with tennis balls.}"),
            ("How small does it pack?", "About {packed_litres} litres in the bag that comes with it.")]),
    dict(
        prefix="OB", path=["Outdoor", "Hiking", "Hiking boots"], noun="hiking boots",
        keys="height waterproof material weight_g_pair sole fit",
        models="""
Kaldvik|Fjellsti Mid|17900|mid,yes,suede and mesh,980,medium,regular
Kaldvik|Fjellsti High|22900|high,yes,nubuck,1340,stiff,regular
Wanderbrook|Path Low|9990|low,no,mesh,640,flexible,regular
Wanderbrook|Path Mid Wide|11900|mid,yes,mesh,860,medium,wide
Aldergate|Moor Boot|15900|mid,yes,waxed leather,1180,medium,regular
""",
        text="{height=high?High|{height=mid?Mid-height|Low}} hiking boots of {material} with a {sole} sole, {weight_g_pair} g a pair. {waterproof=yes?A PFC-free membrane keeps water out.|They breathe freely and dry within hours, but they are not waterproof.} {fit=wide?Cut two sizes wider across the toes.|}",
        bullets=["{waterproof=yes?Waterproof membrane|Not waterproof}", "{weight_g_pair} g a pair", "Sole: {sole}", "Fit: {fit}"],
        pos=["No blisters, not even on the first day.", "{waterproof=yes?Stood in a stream for a minute and my socks stayed dry.|Dry again an hour after the stream.}", "{fit=wide?Finally a boot for wide feet.|}", "{height=high?Holds the ankle firmly on scree.|}", "Good grip on wet rock.", "{weight_g_pair<700?Feels like a running shoe.|}", "Soles still fine after {~300-700} km."],
        neg=["{waterproof=yes?Warm in summer.|Wet feet in morning dew.}", "Take half a size more than usual.", "{sole=stiff?Needs a week to break in.|The sole is soft on sharp stones.}", "The laces come undone.", "{material=suede and mesh?The mesh tore at the little toe after a season.|}"],
        qa=[("Are they waterproof?", "{waterproof=yes?Yes, mine have been through streams and wet grass.|No. They dry fast, though.}"),
            ("Do they run true to size?", "I took half a size more because of thick socks."),
            ("Are they suitable for wide feet?", "{fit=wide?Yes, this is the wide last.|Rather not, the toe box is of normal width.}")]),
    dict(
        prefix="HV", path=["Home", "Cleaning", "Vacuum cleaners"], noun="vacuum cleaner",
        keys="type noise_db runtime_min bin_litres weight_kg hepa",
        models="""
Ventola|Stilo 40|24900|cordless stick,74,40,0.6,2.7,yes
Ventola|Stilo 60|34900|cordless stick,72,60,0.8,2.9,yes
Ventola|Rondo|29900|robot,65,110,0.4,3.4,no
Ostara|Schlitten Eco|12900|canister,69,0,3.5,5.8,yes
Ostara|Schlitten Pet|16900|canister,71,0,3.5,6.1,yes
""",
        text="A {type} vacuum cleaner of {weight_kg} kg with a {bin_litres} litre {type=canister?bag|bin}. {runtime_min>0?It runs for {runtime_min} minutes on its normal setting. |Seven metres of cable give it a radius of ten. }At {noise_db} dB it is {noise_db<70?quiet enough to talk over|about as loud as others of its kind}. {hepa=yes?A washable HEPA filter holds back fine dust.|}",
        bullets=["{noise_db} dB", "{runtime_min>0?{runtime_min} minutes of battery|Mains powered, radius 10 m}", "{hepa=yes?HEPA filter|No HEPA filter}", "Weighs {weight_kg} kg"],
        pos=["Gets dog hair out of the carpet in one go.", "{noise_db<70?Quiet enough that the baby sleeps on.|}", "{type=robot?Finds its way under the sofa and back to the dock.|}", "{runtime_min>50?One charge is enough for the whole flat.|}", "{hepa=yes?My allergy has been better since.|}", "Easy to empty without a cloud of dust.", "{type=cordless stick?Hangs on the wall, always at hand.|}"],
        neg=["{type=robot?Gets stuck on the fringe of the rug every time.|}", "{runtime_min>0?On boost the battery is empty after {~8-12} minutes.|The cable could be longer.}", "{bin_litres<1?The bin is small, I empty it twice for one flat.|}", "{hepa=no?Fine dust comes out at the back.|Replacement filters are expensive.}", "Hair wraps around the brush."],
        qa=[("How loud is it?", "{noise_db} dB on the normal setting. {noise_db<70?You can watch television next to it.|Like most of them.}"),
            ("Is it good for pet hair?", "Yes, the brush picks up hair well, but you have to cut it off the roller now and then."),
            ("How long does the battery last?", "{runtime_min>0?{runtime_min} minutes on normal, about ten on boost.|It has a cable.}")]),
    dict(
        prefix="HB", path=["Home", "Bedroom", "Duvets and pillows"], noun="bedding",
        keys="type filling warmth size wash_c weight_g",
        models="""
Lakenhus|Sommer 135|5990|duvet,cotton,summer,135 × 200 cm,60,900
Lakenhus|Vinter 135|15900|duvet,goose down,winter,135 × 200 cm,40,780
Lakenhus|Aar 155|8990|duvet,recycled fibre,all year,155 × 220 cm,60,1450
Lakenhus|Nakke|4990|pillow,memory foam,all year,60 × 35 cm,40,1100
Lakenhus|Sky|3290|pillow,recycled fibre,all year,80 × 80 cm,60,850
""",
        text="A {type} filled with {filling}, {size}, {type=duvet?for {warmth=all year?the whole year|{warmth}} use|for side and back sleepers}. It weighs {weight_g} g and can be washed at {wash_c} °C{filling=memory foam? (the cover only)|}.",
        bullets=["{size}", "Filling: {filling}", "Wash at {wash_c} °C{filling=memory foam?, cover only|}", "OEKO-TEX tested fabric"],
        pos=["{warmth=winter?Warm and light at the same time.|}", "{warmth=summer?Finally not too warm in July.|}", "{filling=memory foam?My neck pain is gone after two weeks.|}", "{wash_c>50?Washed at 60 three times, still fluffy.|}", "No smell out of the packaging.", "The fabric is soft and does not rustle."],
        neg=["{filling=memory foam?Smelled of foam for the first days.|}", "{warmth=winter?Much too warm for a heated bedroom.|}", "{warmth=summer?Thinner than I had expected.|}", "{filling=recycled fibre?Lumpy after the third wash.|}", "Smaller than it looks in the picture."],
        qa=[("Can it be washed at 60 degrees?", "{wash_c>50?Yes, at {wash_c} °C.|No, only at {wash_c} °C{filling=memory foam?, and only the cover|}.}"),
            ("Is it suitable for people with allergies?", "{filling=goose down?I would take one with fibre that can be washed hotter.|{wash_c>50?Yes, since it can be washed at 60 °C.|More or less; only 40 °C, which does not kill mites.}}")]),
]
