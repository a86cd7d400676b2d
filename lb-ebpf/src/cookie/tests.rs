use proptest::prelude::*;

use super::*;

const KEY: [u64; 2] = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];

fn any_tuple() -> impl Strategy<Value = Tuple> {
    any::<([u64; 2], [u64; 2], u32, bool)>().prop_map(|(source, destination, ports, v6)| Tuple {
        source,
        destination,
        ports,
        protocol: 6,
        v6,
    })
}

const TERMS: Terms = Terms {
    timestamps: true,
    server_scale: 7,
};

fn made(tuple: &Tuple, isn: u32, offer: u8, epoch: u32) -> Cookie {
    Cookie::new(hash(&KEY, tuple, isn, bound(TERMS, offer, epoch)), offer)
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        vec![2, 4, 5, 180],
        vec![4, 2],
        vec![1, 3, 3, 9],
        vec![3, 3, 6],
        vec![8, 10, 1, 2, 3, 4, 0, 0, 0, 0],
        vec![1],
        vec![30, 4, 1, 2],
    ])
}

fn options_of(list: &[u8]) -> Options {
    stamped(list, Stamp::Value)
}

fn stamped(list: &[u8], stamp: Stamp) -> Options {
    let mut frame = vec![0xff; 20];
    frame.extend(list);
    let start = frame.as_ptr() as usize;
    // SAFETY: the vector outlives its use.
    let seen = unsafe { Frame::new(start, start + frame.len()) };
    Options::unpack(options(&seen, 0, frame.len(), stamp))
}

proptest! {
    #[test]
    fn a_cookie_is_good_in_its_epoch_and_the_ones_beside(
        tuple in any_tuple(), isn: u32, offer: u8, epoch: u32, distance in -3i32..=3,
    ) {
        let cookie = made(&tuple, isn, offer, epoch);
        let now = epoch.wrapping_add_signed(distance);
        let good = is_good(cookie, TERMS, now, |bound| hash(&KEY, &tuple, isn, bound));
        prop_assert_eq!(good, distance.abs() <= 1);
        prop_assert_eq!(cookie.isn as u8, offer);
    }

    #[test]
    fn whatever_is_changed_the_cookie_is_not_good(
        tuple in any_tuple(), isn: u32, offer: u8, epoch: u32, bit in 0u32..32, what in 0..8,
    ) {
        let mut cookie = made(&tuple, isn, offer, epoch);
        let flip = 1 << bit;
        let (mut tuple, mut isn, mut terms, mut key) = (tuple, isn, TERMS, KEY);
        match what {
            // IPv4 addresses are in the second half.
            0 => tuple.source[1] ^= u64::from(flip) << 32,
            1 => tuple.destination[1] ^= u64::from(flip) << 32,
            2 => tuple.ports ^= flip,
            3 => isn ^= flip,
            4 => cookie.isn ^= flip,
            5 => terms.timestamps = false,
            6 => terms.server_scale = 8,
            _ => key[0] ^= 1 << bit,
        }
        // With timestamps 32 bits decide, without them 24, of three epochs: nothing that a test meets by chance.
        prop_assert!(!is_good(cookie, terms, epoch, |bound| hash(&key, &tuple, isn, bound)));
    }

    #[test]
    fn an_answer_is_no_longer_than_its_syn_and_says_only_what_was_offered(
        list in prop::collection::vec(any_option(), 0..5), flags: u8, say_options in 0u8..8, v6: bool, isn: u32, stamp: u32,
    ) {
        let list = list.concat();
        prop_assume!(list.len() <= 40);
        let room = list.len().next_multiple_of(4);
        let offered = options_of(&list);
        let say = SynAnswer { mss: 1460, window: 64_240, window_scale: 7, options: say_options, pad: 0 };
        let syn = TcpHeader {
            source: 1, destination: 2, sequence_be: 7u32.to_be(), acknowledgement_be: 0,
            header_length: 0, flags, window: 0, checksum: 0, urgent: 0,
        };
        let agreed = Agreed::new(&offered, flags, &say);
        let answer = agreed.answer(isn, stamp, (&syn, &offered), &say);
        prop_assert!(answer.option_words * 4 <= room, "{} words to {room} bytes", answer.option_words);
        prop_assert_eq!(answer.header.header_length, (5 + answer.option_words as u8) << 4);
        prop_assert!(answer.options[answer.option_words..].iter().all(|word| *word == 0));
        let bytes: Vec<u8> = answer.options.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let said = options_of(&bytes[..answer.option_words * 4]);
        let sized = offered.mss != 0;
        prop_assert_eq!(said.mss, if sized { 1460 } else { 0 });
        prop_assert_eq!(said.sack, sized && offered.sack && say_options & ANSWER_SACK != 0);
        prop_assert_eq!(said.timestamps, sized && offered.timestamps && say_options & ANSWER_TIMESTAMPS != 0);
        prop_assert_eq!(said.timestamps, agreed.terms(&say).timestamps);
        let scaled = sized && offered.window_scale != NO_SCALE;
        prop_assert_eq!(said.window_scale, if scaled { 7 } else { NO_SCALE });
        if said.timestamps {
            prop_assert_eq!(u32::from_be(said.stamp_be), stamp);
            let echo = stamped(&bytes[..answer.option_words * 4], Stamp::Echo).stamp_be;
            prop_assert_eq!(echo, offered.stamp_be);
        }
        let held = Offer::unpack(agreed.pack(v6), v6);
        prop_assert_eq!((held.sack, held.window_scale != NO_SCALE), (said.sack, scaled));
        prop_assert_eq!(held.ecn, answer.header.flags & TCP_ECE != 0);
        prop_assert_eq!(u32::from_be(answer.header.sequence_be), isn);
        prop_assert_eq!(u32::from_be(answer.header.acknowledgement_be), 8);
    }

    #[test]
    fn an_offer_comes_back_no_larger_than_it_was(mss: u16, scale in 0u8..=15, sack: bool, ecn: bool, v6: bool) {
        let offer = Offer { mss, window_scale: scale, sack, ecn };
        let back = Offer::unpack(offer.pack(v6), v6);
        let least = if v6 { MSS_V6[0] } else { MSS_V4[0] };
        prop_assert!(back.mss <= mss.max(least));
        prop_assert_eq!((back.window_scale, back.sack, back.ecn), (scale, sack, ecn));
    }

    #[test]
    fn any_bytes_are_read_without_harm(list in prop::collection::vec(any::<u8>(), 0..=40)) {
        let found = options_of(&list);
        prop_assert!(found.window_scale <= NO_SCALE);
    }

    /// No load balancer's clock is exact, and a jiffy is not always a whole number of milliseconds.
    #[test]
    fn the_clock_is_right_for_hours(now_ms in 1_600_000_000_000u64..4_000_000_000_000, jiffies in 0u64..1 << 40, hz in prop::sample::select(vec![100, 250, 300, 1000]), hours in 0u64..=2) {
        let clock = Clock::new(now_ms, jiffies, hz);
        let passed = hours * 3600;
        let told = clock.ms(jiffies + passed * u64::from(hz));
        prop_assert!(told.abs_diff(now_ms + passed * 1000) <= 25);
    }
}

#[test]
fn the_segment_is_the_largest_that_the_client_takes() {
    let mss = |mss, v6| {
        let offer = Offer {
            mss,
            window_scale: 0,
            sack: false,
            ecn: false,
        };
        Offer::unpack(offer.pack(v6), v6).mss
    };
    assert_eq!(
        [0, 536, 1299, 1300, 1439, 1459, 1460, 8960].map(|it| mss(it, false)),
        [536, 536, 536, 1300, 1300, 1440, 1460, 1460]
    );
    assert_eq!(
        [0, 1220, 1320, 1419, 1420, 1440, 8940].map(|it| mss(it, true)),
        [1220, 1220, 1320, 1320, 1420, 1440, 1440]
    );
}

#[test]
fn options_of_real_systems_are_read() {
    let linux = [
        2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 9, 1, 3, 3, 7,
    ];
    let expected = Options {
        mss: 1460,
        window_scale: 7,
        sack: true,
        timestamps: true,
        stamp_be: u32::from_ne_bytes([1, 2, 3, 4]),
    };
    assert_eq!(options_of(&linux), expected);
    let echo = stamped(&linux, Stamp::Echo).stamp_be;
    assert_eq!(u32::from_be(echo), 9);
    let windows = [2, 4, 0x05, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
    let found = options_of(&windows);
    assert_eq!((found.mss, found.window_scale), (1460, 8));
    assert!(found.sack && !found.timestamps);
    let macos = [
        2, 4, 0x05, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 9, 4, 2, 0, 0,
    ];
    let expected = Options {
        window_scale: 6,
        ..expected
    };
    assert_eq!(options_of(&macos), expected);
}

#[test]
fn options_that_cannot_be_end_the_list() {
    let none = options_of(&[]);
    assert_eq!((none.mss, none.window_scale), (0, NO_SCALE));
    for list in [
        &[0, 2, 4, 5, 180][..],
        &[9, 0, 2, 4, 5, 180],
        &[9, 1, 2, 4, 5, 180],
        &[2, 5, 5, 180],
        &[2, 4, 5],
    ] {
        assert_eq!(options_of(list), none, "{list:?}");
    }
    // Of another length than it has.
    assert_eq!(options_of(&[2, 3, 5, 4, 2]).mss, 0);
    assert!(options_of(&[2, 3, 5, 4, 2]).sack);
    assert_eq!(options_of(&[3, 3, 200]).window_scale, MAX_SCALE);
}
