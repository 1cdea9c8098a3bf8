"""Kinds of products, second half. See make.py for the notation."""

KINDS = [
    dict(
        prefix="HL", path=["Home", "Lighting", "Desk and floor lamps"], noun="lamp",
        keys="type lumen kelvin dimmable power_w height_cm",
        models="""
Lakenhus|Lykt Desk|4990|desk lamp,520,3000,yes,7,42
Lakenhus|Lykt Floor|9990|floor lamp,1400,2700,yes,16,148
Ostara|Klemm|2490|clip-on lamp,300,4000,no,4,30
Orbita|Halo Tunable|7990|desk lamp,800,2700 to 6500,yes,10,48
Lakenhus|Papir|5990|floor lamp,900,2700,no,11,120
""",
        text="A {type}, {height_cm} cm high, that gives {lumen} lumen at {kelvin} K from {power_w} W. {dimmable=yes?It dims without flicker down to five percent.|It is either on or off.}",
        bullets=["{lumen} lumen, {kelvin} K", "{dimmable=yes?Dimmable|Not dimmable}", "{power_w} W LED, replaceable"],
        pos=["{dimmable=yes?Dims low enough for a bedroom.|}", "{lumen>700?Lights my whole desk.|Enough light to read in bed.}", "No hum and no flicker.", "Stands firmly on its foot.", "{kelvin=2700?The light is pleasantly warm.|}"],
        neg=["{dimmable=no?Too bad that it cannot be dimmed.|The touch button reacts slowly.}", "The cable is white on a black lamp.", "{lumen<400?Too weak for a whole desk.|}", "The joint does not stay where I put it."],
        qa=[("Can it be dimmed?", "{dimmable=yes?Yes, down to about five percent.|No, only on and off.}"),
            ("Is the light warm or cold?", "{kelvin} K{kelvin=2700?, so warm|}{kelvin=4000?, so rather neutral|}.")]),
    dict(
        prefix="GT", path=["Garden", "Tools", "Pruners and shears"], noun="garden tool",
        keys="type cut_mm length_cm weight_g blade left_handed",
        models="""
Rowanfield|Bypass 8|3990|bypass pruner,20,21,230,carbon steel,yes
Rowanfield|Bypass Rolling|4990|bypass pruner,22,22,255,carbon steel,no
Rowanfield|Lopper 75|5990|lopper,45,75,1350,carbon steel,yes
Groenmark|Anvil 6|1990|anvil pruner,18,20,190,stainless steel,yes
Groenmark|Hedge 60|3490|hedge shears,10,60,980,stainless steel,yes
""",
        text="A {type} of {blade} for branches up to {cut_mm} mm. It is {length_cm} cm long and weighs {weight_g} g. {type=anvil pruner?The blade closes on a flat anvil, which suits dead and dry wood.|{type=bypass pruner?Two blades pass each other and leave a clean cut on green wood.|All wearing parts can be ordered.}}",
        bullets=["Cuts up to {cut_mm} mm", "{left_handed=yes?For left and right hands|For right-handed people}", "{weight_g} g", "Spare parts available"],
        pos=["Cuts {cut_mm} mm branches like butter.", "{type=bypass pruner?Clean cuts on roses, no crushing.|}", "{weight_g>900?The long handles do the work.|Light enough for an afternoon of pruning.}", "{left_handed=yes?Works in my left hand.|}", "The spring can be replaced, and I have done it."],
        neg=["{blade=carbon steel?Rusts if you leave it out in the rain.|}", "{type=anvil pruner?Crushes fresh shoots.|The lock opens by itself in the pocket.}", "{weight_g>900?Heavy above head height.|Too wide a grip for small hands.}", "Blunt after one season of hedge."],
        qa=[("How thick a branch can it cut?", "{cut_mm} mm of green wood, somewhat less when it is dry."),
            ("Is it suitable for left-handed people?", "{left_handed=yes?Yes, I am left-handed myself.|No, the catch is on the wrong side.}")]),
    dict(
        prefix="GW", path=["Garden", "Watering", "Watering and irrigation"], noun="watering set",
        keys="type length_m pressure_bar timer frost_proof material",
        models="""
Groenmark|Hose 20|3490|hose,20,8,no,no,PVC
Groenmark|Hose 30 Flex|5990|hose,30,12,no,no,rubber
Rowanfield|Drip 25|4490|drip irrigation,25,3,no,yes,recycled polyethylene
Rowanfield|Drip Timer|3990|irrigation timer,0,8,yes,no,ABS
Groenmark|Reel 20 Wall|11900|hose reel,20,10,no,no,PVC
""",
        text="{type=hose?A garden hose of {length_m} m in {material} that withstands {pressure_bar} bar.|}{type=drip irrigation?A drip line of {length_m} m for beds and raised beds; it runs on {pressure_bar} bar and saves more than half of the water.|}{type=irrigation timer?A timer for the tap with two programmes a day and a rain pause.|}{type=hose reel?A wall reel with {length_m} m of hose that winds itself up.|} {frost_proof=yes?It may stay out in winter.|Drain it and take it in before the first frost.}",
        bullets=["{length_m>0?{length_m} m|Two programmes a day}", "Up to {pressure_bar} bar", "{frost_proof=yes?Frost-proof|Store it frost-free}"],
        pos=["{type=drip irrigation?Tomatoes have never looked better and the water bill fell.|}", "{material=rubber?Does not kink and stays soft in the cold.|}", "{timer=yes?Three weeks of holiday and everything was alive.|}", "Fits the common click couplings.", "{type=hose reel?Winds itself up without a tangle.|}"],
        neg=["{material=PVC?Kinks after a summer in the sun.|}", "{timer=yes?The battery compartment lets water in.|The coupling dripped until I changed the seal.}", "{frost_proof=no?Burst because I forgot it outside in November.|}", "Instructions are only pictures."],
        qa=[("Can it stay outside in winter?", "{frost_proof=yes?Yes, ours has been out for two winters.|No, drain it and store it inside.}"),
            ("Does it fit standard couplings?", "Yes, the usual half-inch click system.")]),
    dict(
        prefix="PD", path=["Pets", "Dogs", "Dog beds and harnesses"], noun="dog supply",
        keys="type size for_kg washable waterproof material",
        models="""
Pelzig|Nest M|4990|dog bed,M,up to 15,yes,no,corduroy
Pelzig|Nest L|6990|dog bed,L,up to 30,yes,no,corduroy
Pelzig|Ortho L|9990|dog bed,L,up to 40,yes,yes,memory foam
Tassenhof|Trail Harness S|3490|harness,S,6 to 12,yes,yes,nylon
Tassenhof|Trail Harness L|3990|harness,L,22 to 38,yes,yes,nylon
Tassenhof|Winter Coat M|4490|dog coat,M,10 to 18,yes,yes,lined softshell
""",
        text="A {type} in size {size} for dogs of {for_kg} kg, of {material}. {washable=yes?It can be machine-washed at 30 °C{type=dog bed? (the cover)|}. |}{waterproof=yes?Rain and mud do not get through.|Not for wet places.}",
        bullets=["Size {size}, {for_kg} kg", "{washable=yes?Machine-washable at 30 °C|Wipe clean}", "{waterproof=yes?Waterproof|}", "{type=harness?Two rings: back and chest|}"],
        pos=["{type=dog bed?My old dog went to it at once and stayed.|}", "{type=harness?No pulling since we use the chest ring.|}", "{type=dog coat?Covers the belly too, which others do not.|}", "Washed several times and still in shape.", "{material=memory foam?Gets up more easily in the morning since she sleeps on it.|}", "Seams have survived a puppy."],
        neg=["Order by weight, not by letter: {size} was too small for us.", "{type=harness?The buckle squeaks.|}", "{type=dog bed?The filling slides to one side.|}", "{waterproof=no?Soaks through when he comes in wet.|Rustles, which scared him at first.}"],
        qa=[("Which weight is size {size} for?", "Dogs of {for_kg} kg; ours is in the middle and it fits."),
            ("Can it be washed?", "{washable=yes?Yes, at 30 degrees{type=dog bed?, just the cover|}.|Only wiped.}")]),
    dict(
        prefix="PC", path=["Pets", "Cats", "Cat trees and fountains"], noun="cat supply",
        keys="type height_cm weight_kg max_cat_kg noise_db material",
        models="""
Pelzig|Baum 150|11900|cat tree,150,18,8,0,sisal and beech
Pelzig|Baum 180 Maine|18900|cat tree,180,31,14,0,sisal and beech
Pelzig|Kratz 70|3990|scratching post,70,6,8,0,sisal
Ventola|Quell 2|4490|drinking fountain,17,1.1,0,28,stainless steel
Ventola|Quell Mini|2990|drinking fountain,14,0.7,0,32,plastic
""",
        text="{type=drinking fountain?A drinking fountain of {material} that murmurs at {noise_db} dB and filters the water with active carbon.|A {type} of {material}, {height_cm} cm high and {weight_kg} kg heavy, for cats up to {max_cat_kg} kg.} {max_cat_kg>10?The base is wide enough for a jump from the top.|}",
        bullets=["{height_cm} cm high", "{max_cat_kg>0?For cats up to {max_cat_kg} kg|Quiet: {noise_db} dB}", "Of {material}"],
        pos=["{type=drinking fountain?She drinks twice as much as from the bowl.|}", "{max_cat_kg>10?My seven-kilo Maine Coon jumps and nothing wobbles.|}", "{type=drinking fountain?So quiet that you only hear the water.|The sisal has lasted for a year of claws.}", "Easy to put together with the one key that comes with it.", "Looks like furniture, not like a toy."],
        neg=["{type=drinking fountain?The filters cost more than I thought.|}", "{type=cat tree?Assembly took two people and an hour.|}", "{material=plastic?Gets slimy within days.|A screw was missing.}", "The cat prefers the box."],
        qa=[("Is it stable for a heavy cat?", "{max_cat_kg>0?It is rated up to {max_cat_kg} kg. {max_cat_kg>10?Very stable.|Screw it to the wall for heavy ones.}|It is a fountain; the rubber feet keep it in place.}"),
            ("Is it loud?", "{noise_db>0?About {noise_db} dB. It gets louder when the water is low.|It makes no noise.}")]),
    dict(
        prefix="TD", path=["Tools", "Power tools", "Drills and drivers"], noun="drill",
        keys="type volt torque_nm battery_ah weight_kg hammer",
        models="""
Eisenrick|DD 12|8990|drill driver,12,32,2,1.0,no
Eisenrick|DD 18|14900|drill driver,18,60,4,1.6,no
Eisenrick|HD 18|18900|hammer drill,18,65,4,1.9,yes
Eisenrick|RH 230|15900|rotary hammer,230,0,0,3.1,yes
Bohrmann|Heim 18|6990|drill driver,18,40,1.5,1.4,no
Bohrmann|Mini 4|3990|screwdriver,4,5,1.5,0.35,no
""",
        text="A {type} of {weight_kg} kg. {volt=230?It runs on mains power and drills 26 mm holes into concrete with its SDS-plus chuck.|It runs on {volt} V with a {battery_ah} Ah battery and turns with up to {torque_nm} Nm.} {hammer=yes?The hammer mechanism makes it fit for brick and concrete.|For wood, metal and plasterboard; not for concrete.}",
        bullets=["{volt=230?Mains powered, 800 W|{volt} V, {battery_ah} Ah}", "{torque_nm>0?{torque_nm} Nm|}", "{hammer=yes?Drills concrete|No hammer function}", "{weight_kg} kg"],
        pos=["{hammer=yes?Goes through concrete that defeated my old one.|}", "{torque_nm>50?Drives 8 × 200 screws without pilot holes.|}", "{weight_kg<1.1?So light that overhead work is no trouble.|}", "{volt=230?No battery to run out.|The battery lasted through a whole kitchen.}", "The case has room for bits.", "Good light around the chuck."],
        neg=["{hammer=no?Useless in concrete, which I should have read.|Heavy above head height.}", "{battery_ah=1.5?The battery is small and charges for 90 minutes.|}", "{volt=230?The cable is stiff.|The charger fan is loud.}", "The chuck wobbles a bit."],
        qa=[("Can it drill concrete?", "{hammer=yes?Yes, {type=rotary hammer?easily|with masonry bits up to 13 mm}.|No, it has no hammer function. Brick perhaps, concrete no.}"),
            ("Is a battery included?", "{volt=230?It has none, it plugs into the wall.|Yes, {battery_ah} Ah and a charger.}")]),
    dict(
        prefix="TH", path=["Tools", "Hand tools", "Tool sets"], noun="tool set",
        keys="type pieces weight_kg steel case guarantee_years",
        models="""
Bohrmann|Heim 45|3990|household set,45,2.4,carbon steel,plastic,2
Eisenrick|Ratchet 94|9990|socket set,94,6.2,chrome vanadium,plastic,25
Eisenrick|Hex 18|2490|hex key set,18,0.6,chrome vanadium,none,25
Eisenrick|Driver 12|3490|screwdriver set,12,1.1,chrome vanadium,textile roll,25
Bohrmann|Bike 22|5490|bicycle set,22,1.9,chrome vanadium,textile roll,5
""",
        text="A {type} of {pieces} pieces in {steel}, {weight_kg} kg{case=none?|, in a {case}{case=plastic? case|}}. The maker guarantees it for {guarantee_years} years.",
        bullets=["{pieces} pieces", "{steel}", "{guarantee_years} years of guarantee"],
        pos=["Everything for putting furniture together.", "{guarantee_years>20?A broken part was replaced without a question.|}", "Every piece sits firmly in its place.", "{type=bicycle set?Has replaced three workshop visits already.|}", "{steel=chrome vanadium?No round edges after a year.|}"],
        neg=["{steel=carbon steel?The bits round off on tight screws.|}", "{case=plastic?The latch of the case broke.|}", "{type=socket set?The 10 mm went missing, of course.|}", "Smells of oil at first."],
        qa=[("Does it come with a case?", "{case=none?No, the keys hang on two rings.|Yes, a {case}{case=plastic? case|}.}"),
            ("How long is the guarantee?", "{guarantee_years} years from the maker.")]),
    dict(
        prefix="RL", path=["Travel", "Luggage", "Suitcases"], noun="suitcase",
        keys="type litres weight_kg cabin_size shell wheels",
        models="""
Velmora|Cabin 38|12900|suitcase,38,2.4,yes,polycarbonate,4
Velmora|Check 72|17900|suitcase,72,3.6,no,polycarbonate,4
Velmora|Check 100|20900|suitcase,100,4.3,no,polycarbonate,4
Wanderbrook|Duffel 40|8990|wheeled duffel,40,1.9,yes,recycled nylon,2
Wanderbrook|Duffel 80|10900|wheeled duffel,80,2.7,no,recycled nylon,2
""",
        text="A {type} of {litres} litres with a shell of {shell} and {wheels} wheels. It weighs {weight_kg} kg. {cabin_size=yes?At 55 × 40 × 20 cm most airlines take it as cabin luggage.|It is for the hold.} It has a TSA lock.",
        bullets=["{litres} litres", "{cabin_size=yes?Cabin size (55 × 40 × 20 cm)|For the hold}", "{weight_kg} kg", "{wheels} quiet wheels, replaceable"],
        pos=["{wheels=4?Rolls beside me with one finger.|}", "{cabin_size=yes?Fits every overhead bin I have met.|}", "{shell=polycarbonate?Scratches hardly show.|Takes a beating and still looks good.}", "A week of clothes for two fits into {litres} litres.", "A wheel was replaced for free after two years."],
        neg=["{wheels=2?You have to pull it, it does not stand beside you.|Rolls away in the bus.}", "{weight_kg>4?Heavy before anything is in it.|The handle rattles.}", "The lining tore at the zip.", "{cabin_size=yes?Too big for the strictest low-cost airline.|}"],
        qa=[("Can I take it as cabin luggage?", "{cabin_size=yes?Yes, with most airlines: it is 55 × 40 × 20 cm.|No, it is too big and goes into the hold.}"),
            ("How much does it weigh empty?", "{weight_kg} kg.")]),
    dict(
        prefix="RB", path=["Travel", "Bags", "Backpacks"], noun="backpack",
        keys="litres weight_g laptop_inch rain_cover back_length hip_belt",
        models="""
Wanderbrook|City 18|6990|18,620,14,no,one size,no
Wanderbrook|City 26|8990|26,840,16,yes,one size,no
Kaldvik|Tur 35|14900|35,1180,0,yes,adjustable,yes
Kaldvik|Tur 65|21900|65,1760,0,yes,adjustable,yes
Velmora|Work 22|11900|22,980,16,no,one size,no
""",
        text="A backpack of {litres} litres that weighs {weight_g} g. {laptop_inch>0?A padded sleeve takes laptops up to {laptop_inch} inches. |}{hip_belt=yes?The hip belt carries the load and the back length is adjustable. |}{rain_cover=yes?A rain cover is in the bottom pocket.|The fabric sheds a shower, but there is no rain cover.}",
        bullets=["{litres} litres, {weight_g} g", "{laptop_inch>0?Laptop up to {laptop_inch} inches|Opening for a hydration bladder}", "{rain_cover=yes?Rain cover included|No rain cover}", "Back: {back_length}"],
        pos=["{hip_belt=yes?Carried fifteen kilos for a week without sore shoulders.|}", "{laptop_inch>0?The laptop sits tight and does not touch the floor.|}", "{rain_cover=yes?The rain cover kept everything dry.|}", "Many pockets, all in sensible places.", "The zips run smoothly."],
        neg=["{rain_cover=no?Got wet inside in a real downpour.|}", "{hip_belt=no?With more than eight kilos the straps cut in.|The hip belt is long for slim people.}", "The bottle pocket is tight.", "One strap loosens by itself."],
        qa=[("Does a laptop fit?", "{laptop_inch>0?Yes, up to {laptop_inch} inches.|There is no sleeve for one.}"),
            ("Is there a rain cover?", "{rain_cover=yes?Yes, in the bottom pocket.|No, you would have to buy one.}")]),
    dict(
        prefix="CS", path=["Baby and kids", "On the way", "Child seats and pushchairs"], noun="child seat",
        keys="type from_kg to_kg weight_kg isofix folds_one_hand",
        models="""
Kleinhaus|Reise i-Size|24900|child seat,9,18,9.5,yes,no
Kleinhaus|Gross 2|15900|booster seat,15,36,5.2,yes,no
Kleinhaus|Gross Light|6990|booster seat,15,36,3.4,no,no
Kleinhaus|Stroll City|32900|pushchair,0,22,7.9,no,yes
Kleinhaus|Stroll Trail|47900|pushchair,0,22,11.6,no,no
""",
        text="A {type} for children of {from_kg} to {to_kg} kg that weighs {weight_kg} kg itself. {isofix=yes?It clicks into ISOFIX. |}{type=pushchair?{folds_one_hand=yes?It folds with one hand and fits into small boots.|Large air tyres roll over roots and sand.}|Approved to ECE R129.}",
        bullets=["{from_kg} to {to_kg} kg", "{isofix=yes?ISOFIX|}", "{folds_one_hand=yes?Folds with one hand|}", "Cover washable at 30 °C"],
        pos=["{isofix=yes?In and out of the car in a minute.|}", "{folds_one_hand=yes?Folds with one hand while I hold the baby.|}", "{type=pushchair?Steers with a finger.|He falls asleep in it at once.}", "The cover comes off easily for washing."],
        neg=["{weight_kg>9?Heavy to carry up the stairs.|}", "{isofix=no?{type=booster seat?Slides a bit without ISOFIX.|}|}", "The cup holder is extra.", "{type=pushchair?The basket is hard to reach.|Narrow for a broad-shouldered child.}"],
        qa=[("Does it have ISOFIX?", "{isofix=yes?Yes.|{type=pushchair?It is a pushchair, so no.|No, it is held by the car's belt.}}"),
            ("Up to which weight can it be used?", "{to_kg} kg.")]),
    dict(
        prefix="CT", path=["Baby and kids", "Toys", "Building and outdoor toys"], noun="toy",
        keys="type age_from pieces material battery washable",
        models="""
Holzwerk|Blocks 50|3490|building blocks,1,50,beech,no,no
Holzwerk|Marble run 80|5990|marble run,4,80,beech,no,no
Holzwerk|Train 40|4990|wooden train,3,40,beech,no,no
Kleinhaus|Sand set 9|1990|sand toys,2,9,recycled plastic,no,yes
Kleinhaus|Balance bike|6990|balance bike,2,1,birch,no,yes
Orbita|Night projector|2990|night light,2,1,ABS,yes,no
""",
        text="A {type} for children from {age_from} {age_from=1?year|years}, {pieces=1?in one piece|{pieces} pieces}, of {material}. {material=beech?Wood from certified forests, colours that do not come off in the mouth.|} {battery=yes?Needs three AA batteries, which are not included.|}",
        bullets=["From {age_from} {age_from=1?year|years}", "{pieces>1?{pieces} pieces|}", "{battery=yes?Needs 3 AA batteries (not included)|No batteries}"],
        pos=["{material=beech?Smooth edges, not a single splinter.|}", "Keeps both children busy for hours.", "{type=balance bike?After two weeks she was faster than I.|}", "{type=marble run?The grown-ups do not stop building either.|}", "{washable=yes?Hosed down after every trip to the beach.|}", "Comes in a cotton bag instead of plastic."],
        neg=["{age_from>2?Small parts: keep it away from little ones.|}", "{battery=yes?Empties batteries within a week.|}", "{pieces>30?{pieces} pieces are fewer than it sounds.|}", "Paint chipped on one piece."],
        qa=[("From which age is it suitable?", "From {age_from} {age_from=1?year|years}. {age_from>2?It has small parts.|}"),
            ("Does it need batteries?", "{battery=yes?Yes, three AA, not included.|No.}")]),
    dict(
        prefix="FC", path=["Office", "Chairs", "Office chairs"], noun="office chair",
        keys="max_kg seat_height_cm lumbar armrests mesh_back guarantee_years",
        models="""
Kontura|Arbeit 1|19900|110,42-52,fixed,fixed,yes,2
Kontura|Arbeit 3|34900|130,41-54,adjustable,3D,yes,5
Kontura|Arbeit 5|59900|150,40-55,adjustable,4D,yes,10
Lakenhus|Stol|15900|110,44-54,none,none,no,2
Kontura|Tall|44900|150,48-63,adjustable,4D,no,10
""",
        text="An office chair for people up to {max_kg} kg with a seat between {seat_height_cm} cm. {lumbar=adjustable?The lumbar support moves up, down and forward.|{lumbar=none?It has no lumbar support.|The lumbar support is fixed.}} {mesh_back=yes?A mesh back keeps you cool.|The back is padded.}",
        bullets=["Up to {max_kg} kg", "Seat height {seat_height_cm} cm", "Armrests: {armrests}", "{guarantee_years} years of guarantee"],
        pos=["{lumbar=adjustable?Back pain gone after two weeks of home office.|}", "{mesh_back=yes?No sweaty back in summer.|}", "{guarantee_years>4?Feels as if it would last longer than the guarantee.|}", "Assembled in twenty minutes.", "{max_kg>140?Holds my 130 kilos without a creak.|}"],
        neg=["{armrests=fixed?The armrests do not fit under the desk.|}", "{lumbar=none?After two hours I miss a lumbar support.|}", "The castors are loud on parquet.", "{seat_height_cm=48-63?Too high for anyone under 1.75 m.|The seat is hard.}"],
        qa=[("What weight can it carry?", "{max_kg} kg."),
            ("Is the lumbar support adjustable?", "{lumbar=adjustable?Yes, in height and depth.|{lumbar=none?There is none.|No, it is fixed.}}")]),
    dict(
        prefix="FM", path=["Office", "Computers", "Keyboards and mice"], noun="input device",
        keys="type connection layout battery_months quiet weight_g",
        models="""
Orbita|Type 60|7990|keyboard,Bluetooth,compact,6,no,540
Orbita|Type Full|6990|keyboard,USB,full size,0,no,910
Orbita|Type Silent|8990|keyboard,Bluetooth,full size,12,yes,780
Kontura|Ergo Split|14900|keyboard,USB,split,0,yes,860
Kontura|Vertical Mouse|5990|mouse,Bluetooth,vertical,4,yes,118
Orbita|Mouse S|2490|mouse,USB,symmetric,0,no,84
""",
        text="A {layout} {type} with {connection} connection, {weight_g} g. {battery_months>0?A charge lasts about {battery_months} months. |}{quiet=yes?Its switches are damped: nobody on the call hears them.|Its switches click.}",
        bullets=["{connection}", "{battery_months>0?{battery_months} months on a charge|No battery}", "{quiet=yes?Quiet switches|}", "{layout=symmetric?For left and right hands|}"],
        pos=["{quiet=yes?Colleagues have stopped complaining.|}", "{layout=vertical?My wrist has recovered.|}", "{layout=split?Shoulders are relaxed after a day of typing.|}", "{battery_months>0?I have forgotten when I charged it last.|Plugged in and it worked.}", "Keys and buttons have a clear pressure point."],
        neg=["{layout=compact?I miss the arrow keys.|}", "{quiet=no?Too loud for an office with others.|}", "{layout=split?Takes two weeks to get used to.|}", "{connection=Bluetooth?Wakes up with a second of delay.|The cable is stiff.}"],
        qa=[("Is it quiet enough for an open office?", "{quiet=yes?Yes, hardly audible.|No, it clicks.}"),
            ("Is it wireless?", "{connection=Bluetooth?Yes, Bluetooth; {battery_months} months on a charge.|No, it has a USB cable.}")]),
    dict(
        prefix="KE", path=["Kitchen", "Kettles", "Electric kettles"], noun="kettle",
        keys="litres power_w material temperatures noise weight_kg",
        models="""
Lunamara|Wasser 1.7|4990|1.7,2400,stainless steel,5,normal,1.2
Lunamara|Gooseneck 0.9|7990|0.9,1200,stainless steel,41 to 100 in steps of one,quiet,1.0
Ostara|Glas 1.5|2990|1.5,2200,borosilicate glass,1,normal,1.1
Ostara|Basis 1.7|1990|1.7,2200,plastic,1,loud,0.8
Velmora|Travel 0.5|3490|0.5,800,stainless steel,1,normal,0.7
""",
        text="A kettle for {litres} litres with {power_w} W, of {material}. {temperatures=1?It boils and switches itself off.|It can stop at {temperatures}{temperatures=5? temperatures between 50 and 100|} °C, for green tea or filter coffee.} {temperatures=41 to 100 in steps of one?The thin spout pours slowly and exactly.|}",
        bullets=["{litres} litres, {power_w} W", "Of {material}", "{temperatures=1?Boils at 100 °C only|Adjustable temperature}", "Limescale filter can be taken out"],
        pos=["{power_w>2100?A litre boils in under three minutes.|}", "{temperatures=41 to 100 in steps of one?Pour-over coffee has never been this easy.|}", "{material=stainless steel?No plastic touches the water.|}", "{noise=quiet?So quiet that I looked whether it was on.|}", "Easy to descale.", "The lid opens wide enough for a hand."],
        neg=["{noise=loud?Loud enough to interrupt a conversation.|}", "{material=borosilicate glass?You see every speck of limescale.|}", "{power_w<1300?Takes its time, six minutes for a full load.|The outside gets hot.}", "{material=plastic?Smelled of plastic for the first ten boils.|}"],
        qa=[("Can I set the temperature?", "{temperatures=1?No, it only boils.|Yes: {temperatures}{temperatures=5? fixed temperatures| °C}.}"),
            ("Is there plastic inside?", "{material=plastic?Yes, the body is plastic.|No, only {material}.}")]),
    dict(
        prefix="SF", path=["Sport", "Fitness", "Mats and bands"], noun="fitness item",
        keys="type thickness_mm length_cm weight_g material non_slip",
        models="""
Asankhya|Natural 4|6990|yoga mat,4,183,2300,natural rubber,yes
Asankhya|Travel 1.5|4990|yoga mat,1.5,183,1100,natural rubber,yes
Asankhya|Foam 10|2490|exercise mat,10,180,950,NBR foam,no
Kaldvik|Bands 5|1990|resistance bands,0,30,180,latex,no
Asankhya|Roll 45|2990|foam roller,0,45,900,EVA,no
""",
        text="A {type} of {material}{thickness_mm>0?, {thickness_mm} mm thick and {length_cm} cm long|}, {weight_g} g. {non_slip=yes?It grips also with wet hands.|} {thickness_mm>8?Soft enough for knees and back on a hard floor.|}",
        bullets=["{thickness_mm>0?{thickness_mm} mm thick|}", "{weight_g} g", "{non_slip=yes?Non-slip on both sides|}", "Of {material}"],
        pos=["{non_slip=yes?Hands do not slide, even in hot yoga.|}", "{thickness_mm>8?Kind to my knees.|}", "{weight_g<1200?Light enough to carry to class.|Lies flat at once.}", "{type=resistance bands?Five strengths cover everything from rehab to pull-ups.|}"],
        neg=["{material=natural rubber?Smells of rubber for a week or two.|}", "{thickness_mm>8?Too soft for balancing poses.|}", "{thickness_mm=1.5?Too thin for a stone floor.|}", "{non_slip=no?Slides on parquet.|Collects fluff.}"],
        qa=[("Is it non-slip?", "{non_slip=yes?Yes, on both sides, even when wet.|Not really, socks slide on it.}"),
            ("Is it free of latex?", "{material=natural rubber?No, natural rubber contains latex.|{material=latex?No, it is latex.|Yes, it is {material}.}}")]),
    dict(
        prefix="OH", path=["Outdoor", "Lights", "Headlamps"], noun="headlamp",
        keys="lumen runtime_h weight_g battery ip_rating red_light",
        models="""
Kaldvik|Lys 300|3990|300,40,86,rechargeable,IPX4,yes
Kaldvik|Lys 900|8990|900,60,142,rechargeable,IPX7,yes
Wanderbrook|Beam 200|1990|200,30,78,3 AAA,IPX4,no
Orbita|Run 400|4990|400,25,64,rechargeable,IPX4,yes
Wanderbrook|Kids 60|1490|60,20,55,2 AAA,IPX4,no
""",
        text="A headlamp of {lumen} lumen and {weight_g} g that shines for up to {runtime_h} hours on its low setting. {battery=rechargeable?It charges over USB-C.|It takes {battery} batteries.} {red_light=yes?Red light keeps your eyes used to the dark.|} Protection: {ip_rating}.",
        bullets=["{lumen} lumen", "{runtime_h} hours on low", "{battery=rechargeable?Rechargeable over USB-C|{battery}}", "{ip_rating}"],
        pos=["{lumen>350?Turns the trail into daylight.|}", "{weight_g<70?I forget that I am wearing it.|}", "{red_light=yes?Red light is worth gold in the tent.|}", "{battery=rechargeable?Charges from the same cable as my phone.|Spare batteries are sold everywhere.}", "The button works with gloves."],
        neg=["{lumen<250?Too weak for running.|On full power it gets warm and empty after two hours.}", "The band soaks up sweat.", "{red_light=no?No red light.|}", "Switches itself on in the rucksack."],
        qa=[("Is it bright enough for trail running?", "{lumen>350?Yes, more than enough.|For walking yes, for running I would want more than {lumen} lumen.}"),
            ("Is it waterproof?", "{ip_rating=IPX7?Yes, IPX7, even under water for half an hour.|Rain is fine ({ip_rating}), diving is not.}")]),
]
