use std::io::Write;

use flate2::{GzBuilder, write::GzEncoder};
use proptest::prelude::*;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, compress_bound};

use super::*;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).expect("to memory");
    encoder.finish().expect("to memory")
}

/// One frame, with a checksum as kit writes it.
fn zstd(content: &[u8]) -> Vec<u8> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::ChecksumFlag(true)).expect("a known parameter");
    let mut frame = Vec::with_capacity(compress_bound(content.len()));
    context.compress2(&mut frame, content).expect("to memory");
    frame
}

/// A frame that decoders pass over.
fn skippable(content: &[u8]) -> Vec<u8> {
    [&0x184d_2a53_u32.to_le_bytes(), &(content.len() as u32).to_le_bytes(), content].concat()
}

/// A frame with one block of one byte, as its header has it: descriptor, and what follows.
fn frame(header: &[u8]) -> Vec<u8> {
    [&b"\x28\xb5\x2f\xfd"[..], header, &[1 | 1 << 3, 0, 0, b'x']].concat()
}

/// A way to compress.
type Coding = (Compression, fn(&[u8]) -> Vec<u8>);

const CODINGS: [Coding; 2] = [(Compression::Gzip, gzip), (Compression::Zstd, zstd)];

fn decoder(compression: Compression, size: usize) -> Inflate {
    Inflate::new(compression, size as u64).expect("memory").expect("compressed")
}

fn inflate(compression: Compression, blob: &[u8], piece: usize) -> Result<Vec<u8>, InflateError> {
    let mut inflate = decoder(compression, blob.len());
    let mut content = Vec::new();
    for bytes in blob.chunks(piece) {
        inflate.write(bytes, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok::<(), InflateError>(())
        })?;
    }
    assert_eq!(inflate.finish()?, content.len() as u64);
    Ok(content)
}

#[test]
fn what_is_not_compressed_needs_no_decoder() {
    assert!(Inflate::new(Compression::None, 5).expect("nothing to be done").is_none());
}

#[test]
fn parts_are_one_stream() {
    let mut named = GzBuilder::new().filename("x").comment("y").extra("zz").write(Vec::new(), flate2::Compression::fast());
    named.write_all(b"named").expect("to memory");
    let members = [gzip(b"one "), gzip(b""), gzip(b"two "), named.finish().expect("to memory")].concat();
    let mut frames = [skippable(b"noise"), zstd(b"one "), zstd(b""), skippable(b""), zstd(b"two ")].concat();
    frames.extend([zstd(b"named"), skippable(&[7; 3000])].concat());
    for (compression, blob) in [(Compression::Gzip, members), (Compression::Zstd, frames)] {
        for piece in [1, 2, 7, 1000, 10_000] {
            assert_eq!(inflate(compression, &blob, piece).expect("good"), b"one two named", "{compression:?} in pieces of {piece}");
        }
    }
    assert_eq!(inflate(Compression::Zstd, &skippable(b"all"), 3).expect("a frame is a frame"), b"");
}

#[test]
fn only_zeros_may_follow_a_member() {
    let (gz, blob) = (Compression::Gzip, gzip(b"content"));
    for padding in [1, 512, 10_000] {
        let padded = [blob.as_slice(), &vec![0; padding]].concat();
        assert_eq!(inflate(gz, &padded, 100).expect("padded"), b"content");
        let more = [padded.as_slice(), &gzip(b"more")].concat();
        assert!(matches!(inflate(gz, &more, 100), Err(InflateError::Garbage { before: 1, .. })));
    }
}

#[test]
fn garbage_is_found_where_it_begins() {
    for (compression, compress) in CODINGS {
        let whole = compress(b"content");
        for piece in [1, 3, 1000] {
            let garbage = [whole.as_slice(), b"garbage"].concat();
            let error = inflate(compression, &garbage, piece).expect_err("garbage");
            assert!(matches!(error, InflateError::Garbage { offset, before: 1, .. } if offset == whole.len() as u64), "{error}");
            for none in [&b"\0\0\0\0\0\0"[..], b"plain text"] {
                let error = inflate(compression, none, piece).expect_err("garbage");
                assert!(matches!(error, InflateError::Garbage { offset: 0, before: 0, .. }), "{error}");
            }
        }
        assert!(matches!(inflate(compression, b"", 3), Err(InflateError::Empty(_))));
    }
    // As `zstd -d` has it: zeros are no frame either. Nor are frames of before the format was settled.
    let padded = [zstd(b"content"), vec![0; 512]].concat();
    assert!(matches!(inflate(Compression::Zstd, &padded, 100), Err(InflateError::Garbage { part: Part::Frame, before: 1, .. })));
    let old = [b"\x27", &frame(&[0, 0])[1..]].concat();
    assert!(matches!(inflate(Compression::Zstd, &old, 100), Err(InflateError::Garbage { .. })));
}

#[test]
fn every_cut_is_noticed() {
    for (compression, compress) in CODINGS {
        let blob = [compress(b"first"), compress(b"second")].concat();
        let boundary = compress(b"first").len();
        for length in 1..blob.len() {
            let outcome = inflate(compression, &blob[..length], 5);
            assert_eq!(outcome.is_ok(), length == boundary, "{compression:?} {length}");
            assert!(matches!(outcome, Ok(_) | Err(InflateError::Cut { .. })), "{compression:?} {length}");
        }
    }
    let blob = [zstd(b"first"), skippable(b"passed over")].concat();
    assert!(matches!(inflate(Compression::Zstd, &blob[..blob.len() - 1], 5), Err(InflateError::Cut { number: 2, .. })));
}

#[test]
fn checksum_and_length_count() {
    for (compression, compress, checked) in [(Compression::Gzip, gzip as fn(&[u8]) -> Vec<u8>, 8), (Compression::Zstd, zstd, 4)] {
        let blob = compress(b"some content that is checked");
        for from_end in 1..=checked {
            let mut wrong = blob.clone();
            let at = blob.len() - from_end;
            wrong[at] ^= 0x10;
            assert!(matches!(inflate(compression, &wrong, 64), Err(InflateError::Content { number: 1, .. })), "{compression:?} {from_end}");
        }
    }
    let mut wrong = gzip(b"some content");
    wrong[2] = 7;
    assert!(matches!(inflate(Compression::Gzip, &wrong, 64), Err(InflateError::Content { .. })), "method");
}

#[test]
fn headers_of_frames_are_believed_within_limits() {
    const SINGLE: u8 = 1 << 5;
    let window = |log: u8, eighths: u8| [0, (log - 10) << 3 | eighths];
    assert_eq!(inflate(Compression::Zstd, &frame(&window(10, 0)), 3).expect("small"), b"x");
    assert_eq!(inflate(Compression::Zstd, &frame(&window(ZSTD_WINDOW_LOG, 0)), 3).expect("the largest"), b"x");
    for header in [window(ZSTD_WINDOW_LOG, 1), window(ZSTD_WINDOW_LOG + 1, 0), window(41, 7)] {
        let blob = [zstd(b"before"), frame(&header)].concat();
        let error = inflate(Compression::Zstd, &blob, 3).expect_err("too large");
        assert!(matches!(error, InflateError::Window { number: 2, offset, .. } if offset == zstd(b"before").len() as u64), "{error}");
        assert!(error.to_string().contains("134217728"), "{error}");
    }
    assert_eq!(inflate(Compression::Zstd, &frame(&[SINGLE, 1]), 3).expect("its size is right"), b"x");
    for (what, header) in [("a size that lies", vec![SINGLE, 2]), ("a dictionary", vec![1, 0, 9]), ("a reserved bit", vec![1 << 3, 0])] {
        assert!(matches!(inflate(Compression::Zstd, &frame(&header), 3), Err(InflateError::Content { .. })), "{what}");
    }
}

/// libzstd, which read the frames once, looks at the size in the header where a frame comes at once, and not where it comes in pieces and its last block
/// is empty.
#[test]
fn a_frame_that_ends_with_an_empty_block_lacked_content_unnoticed_in_pieces() {
    // 78 bytes by the header, one empty block, and the checksum of nothing.
    let blob = b"\x28\xb5\x2f\xfd\x24\x4e\x01\0\0\x99\xe9\xd8\x51";
    for piece in 1..=blob.len() {
        assert!(inflate(Compression::Zstd, blob, piece).is_err(), "pieces of {piece}");
    }
    // The same with a header that says so.
    let empty = b"\x28\xb5\x2f\xfd\x24\0\x01\0\0\x99\xe9\xd8\x51";
    for piece in 1..=empty.len() {
        assert_eq!(inflate(Compression::Zstd, empty, piece).expect("sound"), b"", "pieces of {piece}");
    }
}

#[test]
fn expansion_ends_at_the_limit() {
    assert_eq!(expansion_limit(0), EXPANSION_FLOOR_BYTES);
    assert_eq!(expansion_limit(1 << 20), 500 << 20);
    assert_eq!(expansion_limit(u64::MAX), u64::MAX);
    for (compression, compress) in CODINGS {
        let blob = compress(&vec![0; 3 * CHUNK]);
        for (limit, passes) in [(3 * CHUNK as u64, true), (3 * CHUNK as u64 - 1, false)] {
            let mut inflate = decoder(compression, blob.len());
            inflate.limit = limit;
            let mut given = 0;
            let outcome = inflate.write(&blob, &mut |bytes| {
                given += bytes.len() as u64;
                Ok::<(), InflateError>(())
            });
            assert_eq!(outcome.is_ok(), passes, "{compression:?} {limit}");
            assert!(given <= limit);
        }
    }
}

#[test]
fn an_error_of_the_receiver_is_handed_back() {
    #[derive(Debug)]
    enum Either {
        Inflate,
        Receiver,
    }
    impl From<InflateError> for Either {
        fn from(_: InflateError) -> Self {
            Self::Inflate
        }
    }
    for (compression, compress) in CODINGS {
        let outcome = decoder(compression, 100).write(&compress(b"x"), &mut |_| Err(Either::Receiver));
        assert!(matches!(outcome, Err(Either::Receiver)));
        assert!(matches!(decoder(compression, 100).write(b"xxxxxx", &mut |_| Ok::<(), Either>(())), Err(Either::Inflate)));
    }
}

proptest! {
    // Contents larger than a chunk, which take a while to generate.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_do_not_matter(
        content in proptest::collection::vec(0u8..4, 0..300_000),
        piece in 1usize..70_000,
        cut in any::<prop::sample::Index>(),
    ) {
        let (a, b) = content.split_at(cut.index(content.len() + 1));
        for (compression, compress) in CODINGS {
            let blob = [compress(a), compress(b)].concat();
            prop_assert_eq!(&inflate(compression, &blob, piece).expect("good"), &content);
            prop_assert_eq!(&inflate(compression, &blob, blob.len()).expect("good"), &content);
        }
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_the_same_in_pieces_and_never_panics(
        content in proptest::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
        bit in 0u8..8,
        piece in 1usize..40,
    ) {
        for (compression, compress) in CODINGS {
            let mut blob = compress(&content);
            let at = flip.index(blob.len());
            blob[at] ^= 1 << bit;
            for blob in [&blob, &content] {
                let (whole, pieces) = (inflate(compression, blob, blob.len().max(1)), inflate(compression, blob, piece));
                prop_assert_eq!(whole.as_ref().ok(), pieces.as_ref().ok(), "{:?} {:?}", whole, pieces);
            }
        }
    }
}

#[test]
fn large_windows_wait_for_each_other_and_small_ones_do_not() {
    static WINDOWS: Windows = Windows::new(1 << ZSTD_WINDOW_LOG);
    let stream = || Inflate::sharing(Compression::Zstd, 1 << 20, &WINDOWS).expect("memory").expect("compressed");
    let window = |log: u8| frame(&[0, (log - 10) << 3]);
    // Byte by byte, as the worst source would.
    let write = |inflate: &mut Inflate, bytes: &[u8], waits: bool| {
        let mut made = Vec::new();
        let mut all = |piece: &[u8]| {
            made.extend_from_slice(piece);
            if piece.is_empty() && !waits { Err(InflateError::Memory) } else { Ok(()) }
        };
        bytes.chunks(1).try_for_each(|byte| inflate.write::<InflateError>(byte, &mut all)).map(|()| made)
    };
    let (mut first, mut second, mut small) = (stream(), stream(), stream());
    // Both halves fit; a third one would not, and a small one is nobody's affair.
    assert_eq!(write(&mut first, &window(26), false).expect("room"), b"x");
    assert_eq!(write(&mut second, &window(26), false).expect("room"), b"x");
    assert_eq!(write(&mut small, &window(23), false).expect("no room needed"), b"x");
    assert!(matches!(write(&mut stream(), &window(24), false), Err(InflateError::Memory)), "there is nothing left");
    // What a stream has serves its next frames. One that wants more gives back what it has and then waits: so do two of them, and none for ever.
    assert_eq!(write(&mut first, &window(25), false).expect("room"), b"x");
    std::thread::scope(|scope| {
        let grow = |mut inflate: Inflate| write(&mut inflate, &window(27), true);
        let growing = [scope.spawn(move || grow(first)), scope.spawn(move || grow(second))];
        for stream in growing {
            assert_eq!(stream.join().expect("no panic").expect("its turn"), b"x");
        }
    });
}

/// What libzstd makes of frames in a row, each of them whole; `None` where it sees an error.
fn reference(mut blob: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    while !blob.is_empty() {
        let size = zstd_safe::find_frame_compressed_size(blob).ok()?;
        let mut context = DCtx::create();
        context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG.into())).expect("a known parameter");
        let mut made = vec![0; 4 * CHUNK];
        let (mut input, mut output) = (InBuffer::around(blob.get(..size)?), OutBuffer::around(&mut made[..]));
        let missing = context.decompress_stream(&mut output, &mut input).ok()?;
        let made_bytes = output.pos();
        (missing == 0).then_some(())?;
        content.extend_from_slice(&made[..made_bytes]);
        blob = &blob[size..];
    }
    Some(content)
}

/// Contents that make compressors use all that the format has: literals of few and of many values, runs, matches near and far.
fn stretches() -> impl Strategy<Value = Vec<u8>> {
    let stretch = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000),
        proptest::collection::vec(prop_oneof![9 => Just(b'e'), 4 => Just(b't'), 1 => any::<u8>()], 0..6000),
        (any::<u8>(), 0usize..40_000).prop_map(|(byte, length)| vec![byte; length]),
        (proptest::collection::vec(any::<u8>(), 3..60), 1usize..400).prop_map(|(word, times)| word.repeat(times)),
    ];
    proptest::collection::vec(stretch, 0..12).prop_map(|stretches| {
        // Some of it once more, from further away.
        let all = stretches.concat();
        let again = all[..all.len() / 2].to_vec();
        [all, again].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The decoder is young, and where a layer has neither checksum nor diffId nothing else would notice what it gets wrong.
    #[test]
    fn frames_are_read_as_libzstd_reads_them(
        contents in proptest::collection::vec(stretches(), 1..3),
        level in -7i32..20,
        window in 10u32..24,
        checksum in any::<bool>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..3),
    ) {
        let frames: Vec<Vec<u8>> = contents.iter().map(|content| {
            let mut context = CCtx::create();
            for parameter in [CParameter::CompressionLevel(level), CParameter::WindowLog(window), CParameter::ChecksumFlag(checksum)] {
                context.set_parameter(parameter).expect("a known parameter");
            }
            let mut frame = Vec::with_capacity(compress_bound(content.len()));
            context.compress2(&mut frame, content).expect("to memory");
            frame
        }).collect();
        let mut blob = frames.concat();
        prop_assert_eq!(&inflate(Compression::Zstd, &blob, 4096).expect("good"), &contents.concat());
        for (at, bit) in damage {
            let at = at.index(blob.len());
            blob[at] ^= 1 << bit;
            // It may see damage that libzstd does not (a stream of literals that is not used up), never less.
            if let Ok(ours) = inflate(Compression::Zstd, &blob, 4096) {
                prop_assert_eq!(Some(ours), reference(&blob));
            }
        }
    }
}
