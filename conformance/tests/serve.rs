//! Serving loses nothing: no page, no request, no byte of an answer, whatever arrives when.

#![allow(clippy::unwrap_used, reason = "a test that unwraps says what it expects by failing")]

use grouped_attention::layers::LayerKind;
use grouped_attention::{Dtype, Error, PageTables, Reference, RowCopy, SequenceId};
use grouped_attention_conformance::lm::{
    DecodeError, Decoder, Model, Options, VOCABULARY, generate,
};
use grouped_attention_conformance::serve::{
    Arrival, Clock, Counters, Outcome, Phase, Preemption, Request, RequestId, ServeError, Server,
    ServerOptions, Texts, replay,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

/// A model whose next byte is a function of every byte before it, read back through the page
/// tables: a row that is lost, stale or somebody else's changes the answer.
#[derive(Debug)]
struct Echo {
    tables: PageTables,
    /// `[pages, page_size]`; `None` where no row may be read.
    cells: Vec<Option<u8>>,
}

impl Echo {
    fn new(page_size: usize, pages: usize) -> Echo {
        let tables = PageTables::new(page_size, pages).unwrap();
        Echo { tables, cells: vec![None; page_size * pages] }
    }

    /// The likeliest byte after `text`: often the one three back, so that drafts come true, else
    /// one that depends on everything.
    fn next(text: &[u8]) -> u8 {
        let fold = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = text.iter().fold(0xcbf2_9ce4_8422_2325, fold) >> 20;
        match text.len().checked_sub(3) {
            Some(back) if !hash.is_multiple_of(4) => text[back],
            _ => b'a' + (hash / 4 % 3) as u8,
        }
    }

    fn cell(&self, text: SequenceId, position: usize) -> usize {
        let page_size = self.tables.page_size();
        let page = self.tables.pages(text).unwrap()[position / page_size];
        page.0 as usize * page_size + position % page_size
    }

    fn copy(&mut self, copies: &[RowCopy]) {
        let page_size = self.tables.page_size();
        for RowCopy { from, to, rows } in copies {
            let at = from.page.0 as usize * page_size + from.row;
            let to = to.page.0 as usize * page_size + to.row;
            self.cells.copy_within(at..at + rows, to);
        }
    }

    fn write(&mut self, text: SequenceId, bytes: &[u8]) -> Result<(), DecodeError> {
        let first = self.tables.len(text).map_err(Error::from)?;
        let copies = self.tables.extend(text, bytes.len()).map_err(Error::from)?;
        self.copy(&copies);
        // The step refuses to write where somebody else reads.
        let queries = [(text, bytes.len())];
        self.tables.step(&queries, grouped_attention::MaskKind::Causal).map_err(Error::from)?;
        for (position, &byte) in (first..).zip(bytes) {
            let cell = self.cell(text, position);
            self.cells[cell] = Some(byte);
        }
        Ok(())
    }

    fn read(&self, text: SequenceId) -> Vec<u8> {
        let positions = 0..self.tables.len(text).unwrap();
        positions.map(|position| self.cells[self.cell(text, position)].unwrap()).collect()
    }

    /// Makes the rows of free pages unreadable.
    fn forget_free_pages(&mut self) {
        let page_size = self.tables.page_size();
        for (page, cells) in (0..).zip(self.cells.chunks_mut(page_size)) {
            if self.tables.users(grouped_attention::PageId(page)) == Some(0) {
                cells.fill(None);
            }
        }
    }
}

impl Texts for Echo {
    type Saved = Vec<u8>;

    fn tables(&self) -> &PageTables {
        &self.tables
    }

    fn insert(&mut self) -> SequenceId {
        self.tables.insert()
    }

    fn remove(&mut self, text: SequenceId) -> Result<(), DecodeError> {
        self.tables.remove(text).map_err(Error::from)?;
        self.forget_free_pages();
        Ok(())
    }

    fn truncate(&mut self, text: SequenceId, len: usize) -> Result<(), DecodeError> {
        self.tables.truncate(text, len).map_err(Error::from)?;
        self.forget_free_pages();
        Ok(())
    }

    fn fork_prefix(&mut self, text: SequenceId, len: usize) -> Result<SequenceId, DecodeError> {
        let (fork, copies) = self.tables.fork_prefix(text, len).map_err(Error::from)?;
        self.copy(&copies);
        Ok(fork)
    }

    fn step(&mut self, batch: &[(SequenceId, &[u8])]) -> Result<Vec<f64>, DecodeError> {
        let mut logits = Vec::new();
        for (text, bytes) in batch {
            let before = self.tables.len(*text).map_err(Error::from)?;
            self.write(*text, bytes)?;
            let all = self.read(*text);
            for end in before + 1..=all.len() {
                let mut row = [0.0; VOCABULARY];
                row[usize::from(Echo::next(&all[..end]))] = 1.0;
                logits.extend_from_slice(&row);
            }
        }
        Ok(logits)
    }

    fn save(&self, text: SequenceId) -> Result<Vec<u8>, DecodeError> {
        Ok(self.read(text))
    }

    fn restore(&mut self, text: SequenceId, saved: &Vec<u8>) -> Result<(), DecodeError> {
        let len = self.tables.len(text).map_err(Error::from)?;
        self.write(text, &saved[len..])
    }
}

/// What [`Echo`] answers to a request that has it to itself.
fn alone(request: &Request) -> Vec<u8> {
    let mut text = request.prompt.clone();
    for _ in 0..request.tokens {
        text.push(Echo::next(&text));
    }
    text.split_off(request.prompt.len())
}

/// A request, the step before which it arrives, and the step before which it is called off.
#[derive(Clone, Debug)]
struct Visit {
    arrives: usize,
    request: Request,
    cancelled: Option<usize>,
}

#[derive(Clone, Debug)]
struct Schedule {
    page_size: usize,
    pages: usize,
    budget: usize,
    speculate: usize,
    visits: Vec<Visit>,
}

/// Prompts are the beginning of one of two passages, then bytes of their own.
fn visit() -> impl Strategy<Value = Visit> {
    let prompt = (0..2_usize, 0..14_usize, proptest::collection::vec(b'a'..=b'c', 1..8)).prop_map(
        |(passage, shared, own)| {
            let passage = [b"abcabcaabbccabc", b"ccbbaacbacbacba"][passage];
            [&passage[..shared], &own].concat()
        },
    );
    let cancelled = prop_oneof![3 => Just(None), 1 => (0..40_usize).prop_map(Some)];
    (0..30_usize, prompt, 1..16_usize, cancelled).prop_map(|(arrives, prompt, tokens, after)| {
        let request = Request { prompt, tokens, temperature: 0.0, seed: 0 };
        Visit { arrives, request, cancelled: after.map(|after| arrives + after) }
    })
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let visits = proptest::collection::vec(visit(), 1..14);
    (1..6_usize, 2..14_usize, 1..12_usize, 0..5_usize, visits).prop_map(
        |(page_size, pages, budget, speculate, mut visits)| {
            visits.sort_by_key(|visit| visit.arrives);
            Schedule { page_size, pages, budget, speculate, visits }
        },
    )
}

/// Every page is free or held, by exactly the texts that list it.
fn assert_pages_accounted(tables: &PageTables) {
    let mut users = HashMap::new();
    for text in tables.sequences() {
        let pages = tables.pages(text).unwrap();
        assert_eq!(pages.len(), tables.len(text).unwrap().div_ceil(tables.page_size()));
        pages.iter().for_each(|&page| *users.entry(page).or_insert(0) += 1);
    }
    assert_eq!(users.len() + tables.free_pages(), tables.pages_total(), "a page has leaked");
    for (page, count) in users {
        assert_eq!(tables.users(page), Some(count));
    }
}

/// Runs a schedule to its end, checking all that must hold at each step and for each answer.
fn run(schedule: &Schedule, preemption: Preemption) -> Counters {
    let Schedule { page_size, pages, budget, speculate, ref visits } = *schedule;
    let options = ServerOptions { budget, speculate, preemption };
    let mut server = Server::new(Echo::new(page_size, pages), options).unwrap();
    let mut open: BTreeMap<RequestId, (&Visit, Vec<u8>)> = BTreeMap::new();
    let mut coming = visits.iter().peekable();
    let work: usize = visits.iter().map(|v| v.request.prompt.len() + v.request.tokens).sum();
    let most = 64 + visits.len() * work;
    let mut now = 0;
    while coming.peek().is_some() || !server.is_idle() {
        assert!(now < most, "no end in sight after {now} steps");
        while let Some(visit) = coming.next_if(|visit| visit.arrives <= now) {
            let Request { prompt, tokens, .. } = &visit.request;
            let needed = (prompt.len() + tokens - 1).div_ceil(page_size);
            match server.submit(&visit.request) {
                Ok(id) => assert!(needed <= pages && open.insert(id, (visit, vec![])).is_none()),
                Err(ServeError::TooLarge { needed: got, pages: all }) => {
                    assert!((got, all) == (needed, pages) && needed > pages);
                }
                Err(error) => panic!("{error}"),
            }
        }
        open.retain(|&id, (visit, answer)| {
            let stays = visit.cancelled.is_none_or(|at| now < at);
            if !stays {
                assert!(server.cancel(id).unwrap() && server.phase(id).is_none());
                assert!(alone(&visit.request).starts_with(answer));
            }
            stays
        });
        let step = server.step().unwrap();
        assert_eq!(step.tokens == 0, open.is_empty(), "a step with work to do did none");
        assert!(step.tokens <= budget);
        for emitted in step.emitted {
            let (visit, answer) = open.get_mut(&emitted.request).unwrap();
            assert!(!emitted.bytes.is_empty());
            answer.extend_from_slice(&emitted.bytes);
            assert_eq!(emitted.done, answer.len() == visit.request.tokens);
            if emitted.done {
                assert_eq!(*answer, alone(&visit.request));
                open.remove(&emitted.request);
            }
        }
        assert_pages_accounted(server.texts().tables());
        assert!(server.requests().eq(open.keys().copied()));
        now += 1;
    }
    assert!(open.is_empty(), "requests were lost");
    assert_eq!(server.pages_in_use().unwrap(), 0);
    server.forget_prefixes().unwrap();
    assert!(server.texts().tables().is_empty());
    assert_eq!(server.texts().tables().free_pages(), pages);
    server.counters()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_when_preempted_rows_are_recomputed(schedule in schedule()) {
        let counters = run(&schedule, Preemption::Recompute);
        prop_assert_eq!((counters.rows_out, counters.rows_in), (0, 0));
    }

    #[test]
    fn nothing_is_lost_when_preempted_rows_are_swapped(schedule in schedule()) {
        let counters = run(&schedule, Preemption::Swap);
        prop_assert!(counters.rows_in <= counters.rows_out);
        prop_assert_eq!(counters.recomputed, 0);
    }
}

/// The property tests above would prove little if their servers never came to these points.
#[test]
fn a_tight_pool_preempts_shares_and_speculates() {
    let visit = |index: usize| {
        let prompt = [&b"abca"[..], &[b'a' + (index % 3) as u8]].concat();
        let request = Request { prompt, tokens: 25, temperature: 0.0, seed: 0 };
        Visit { arrives: 3 * index, request, cancelled: None }
    };
    let visits = (0..8).map(visit).collect();
    let schedule = Schedule { page_size: 3, pages: 18, budget: 12, speculate: 3, visits };

    let recompute = run(&schedule, Preemption::Recompute);
    assert!(recompute.preemptions > 0 && recompute.recomputed > 0, "{recompute:?}");
    let swap = run(&schedule, Preemption::Swap);
    assert!(swap.preemptions > 0 && swap.rows_in > 0, "{swap:?}");
    for counters in [recompute, swap] {
        assert!(counters.shared > 0 && counters.drafted > counters.accepted, "{counters:?}");
        assert!(counters.accepted > 0, "{counters:?}");
    }
}

#[test]
fn a_request_passes_through_its_phases() {
    use Phase::{Decoding, Preempted, Prefilling, Waiting};
    let options = ServerOptions { budget: 4, speculate: 0, preemption: Preemption::Recompute };
    let mut server = Server::new(Echo::new(2, 6), options).unwrap();
    let request = Request { prompt: b"abcabca".to_vec(), tokens: 6, temperature: 0.0, seed: 0 };
    let old = server.submit(&request).unwrap();
    let young = server.submit(&Request { prompt: b"c".to_vec(), ..request }).unwrap();
    let mut seen = vec![];
    while !server.is_idle() {
        let phases = (server.phase(old), server.phase(young));
        if seen.last() != Some(&phases) {
            seen.push(phases);
        }
        server.step().unwrap();
    }
    assert_eq!(
        seen,
        [
            (Some(Waiting), Some(Waiting)),
            (Some(Prefilling), Some(Waiting)),
            (Some(Decoding), Some(Decoding)),
            (Some(Decoding), Some(Preempted)),
            (None, Some(Preempted)),
            (None, Some(Decoding)),
        ]
    );
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let options = ServerOptions { budget: 0, speculate: 0, preemption: Preemption::Swap };
    assert!(matches!(Server::new(Echo::new(2, 2), options), Err(ServeError::NoBudget)));
    let mut server = Server::new(Echo::new(2, 2), ServerOptions { budget: 1, ..options }).unwrap();
    let request = |prompt: &[u8], tokens| Request {
        prompt: prompt.to_vec(),
        tokens,
        temperature: 0.0,
        seed: 0,
    };
    let refused = |server: &mut Server<Echo>, prompt, tokens| {
        server.submit(&request(prompt, tokens)).unwrap_err().to_string()
    };
    assert_eq!(refused(&mut server, b"", 1), "the prompt is empty");
    assert_eq!(refused(&mut server, b"a", 0), "no token is wanted");
    let large = "the request needs 3 pages, and the whole pool has 2";
    assert_eq!(refused(&mut server, b"abc", 3), large);
    assert!(server.is_idle());
    let id = server.submit(&request(b"abc", 2)).unwrap();
    assert!(server.cancel(id).unwrap());
    assert!(!server.cancel(id).unwrap(), "what is done cannot be cancelled");
}

fn load(kind: LayerKind) -> Model {
    let models = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
    Model::load(&models.join(format!("{kind}.safetensors"))).unwrap()
}

/// A clock that ticks once each time it is looked at.
struct Ticks(Duration);

impl Clock for Ticks {
    fn now(&mut self) -> Duration {
        self.0 += Duration::from_secs(1);
        self.0
    }

    fn skip_to(&mut self, time: Duration) {
        self.0 = self.0.max(time);
    }
}

/// The reference attends one row at a time in the order of the positions, and the rest of the
/// model one token at a time, so answers are equal to the bit and no margin is needed.
#[test]
fn answers_of_a_language_model_are_those_it_gives_alone() {
    const PREFIX: &str = "And the LORD said unto Moses, ";
    let model = load(LayerKind::Gla);
    let arrival = |(index, own): (usize, &str)| {
        let prompt = format!("{PREFIX}{own}").into_bytes();
        let temperature = [0.0, 0.7][index % 2];
        let request = Request { prompt, tokens: 20, temperature, seed: index as u64 };
        Arrival { at: Duration::from_secs(5 * index as u64), request, cancel: None }
    };
    let own = ["Speak unto", "the son of the son of", "Go", "Take unto thee", "saying, Speak"];
    let mut arrivals: Vec<Arrival> = own.into_iter().enumerate().map(arrival).collect();
    arrivals[2].cancel = Some(Duration::from_secs(28));

    let (page_size, speculate) = (8, 3);
    let expected: Vec<Vec<u8>> = arrivals
        .iter()
        .map(|Arrival { request, .. }| {
            let &Request { tokens, temperature, seed, .. } = request;
            let dtype = Dtype::Bf16;
            let options = Options { tokens, temperature, seed, page_size, speculate: 0, dtype };
            generate(&model, &Reference, &request.prompt, &options, |_| {}).unwrap().text
        })
        .collect();
    for preemption in [Preemption::Recompute, Preemption::Swap] {
        let decoder = Decoder::new(&model, &Reference, Dtype::Bf16, page_size, 12).unwrap();
        let options = ServerOptions { budget: 16, speculate, preemption };
        let mut server = Server::new(decoder, options).unwrap();
        let replay = replay(&mut server, &arrivals, &mut Ticks(Duration::ZERO), |_, _| {}).unwrap();
        for (index, (record, expected)) in replay.records.iter().zip(&expected).enumerate() {
            if index == 2 {
                assert!(matches!(record.outcome, Outcome::Cancelled), "{record:?}");
                assert!(expected.starts_with(&record.answer));
                continue;
            }
            assert!(matches!(record.outcome, Outcome::Answered), "{record:?}");
            assert_eq!(
                String::from_utf8_lossy(&record.answer),
                String::from_utf8_lossy(expected),
                "{preemption:?}"
            );
        }
        let Counters { preemptions, shared, accepted, rows_in, .. } = replay.counters;
        assert!(preemptions > 0 && shared > 0 && accepted > 0, "{:?}", replay.counters);
        assert_eq!(rows_in > 0, preemption == Preemption::Swap, "{:?}", replay.counters);
        server.forget_prefixes().unwrap();
        assert_eq!(server.texts().tables().free_pages(), 12);
    }
}

// [S-4.7]
#[test]
fn rows_come_back_from_the_host_as_they_were() {
    for kind in [LayerKind::Gqa, LayerKind::Gla] {
        let model = load(kind);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut decoder = Decoder::new(&model, &Reference, dtype, 4, 12).unwrap();
            let (text, other) = (decoder.insert(), decoder.insert());
            decoder.step(&[(text, b"In the beginning"), (other, b"And")]).unwrap();
            let prefix = decoder.fork_prefix(text, 8).unwrap();
            let saved = decoder.save(text).unwrap();
            let expected = decoder.step(&[(text, b" was")]).unwrap();
            decoder.remove(text).unwrap();
            decoder.step(&[(other, b" it came to")]).unwrap();

            // Once from nothing, once behind a shared prefix.
            let whole = decoder.insert();
            decoder.restore(whole, &saved).unwrap();
            assert_eq!(decoder.step(&[(whole, b" was")]).unwrap(), expected, "{kind} {dtype}");
            decoder.remove(whole).unwrap();
            decoder.restore(prefix, &saved).unwrap();
            assert_eq!(decoder.step(&[(prefix, b" was")]).unwrap(), expected, "{kind} {dtype}");

            let error = decoder.restore(prefix, &saved).unwrap_err();
            let expected = "a text of 20 bytes cannot be restored from 16 saved rows";
            assert_eq!(error.to_string(), expected);
        }
    }
}
