package chaos

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/test/check"
)

// The logs of a transactional load: those of its topics, one after the other.
const (
	inputLogs  = iota * partitions // what the copiers copy
	outputLogs                     // their copies, each in the partition of what it is a copy of
	moneyLogs                      // accounts
	mixedLogs                      // what the spreaders write
	txnLogs
)

// Kinds of transactional clients.
const (
	copier   = "copier"
	mover    = "mover"
	spreader = "spreader"
)

// Clients of a transactional load.
const (
	copiers   = 3
	copyGroup = "copiers"
	movers    = 3
	spreaders = 2
	// inputWriter is the writer in the IDs of the input's records. Those of all others have the number of their slot.
	inputWriter = 0

	inputPace = 8 * time.Millisecond // from one record to the next
	// txnPace is the least time from one transaction of a client to its next, and thinkMax what it waits at most until it ends one.
	txnPace, thinkMax = 40 * time.Millisecond, 40 * time.Millisecond
	// fencedMost is what a client that is being fenced waits at most until it goes on.
	fencedMost = time.Second
	// txnTimeout is after how long the broker ends a transaction of a client that is gone.
	txnTimeout = 6 * time.Second
	// One in abortOne transactions is aborted for no reason.
	abortOne = 10
	// What a client's life is at least, and what it is more at most. That of a copier is copierLife times as long, as its partitions are
	// nobody's from its end until its session's and the rebalance after that.
	lifeLeast, lifeMore = 4 * time.Second, 12 * time.Second
	copierLife          = 4
	// auditPace is the time from one cut through all accounts to the next, observePace from one look at offsets to the next.
	auditPace, observePace = 2 * time.Second, 200 * time.Millisecond
)

// txnLoad is transactional clients at work. They write down what they do as a history for package check.
//
//   - An idempotent producer without transactions writes an input, and copiers, the members of one group, make of each record
//     one of the output, in transactions with the offsets of what they read.
//   - Movers move amounts between accounts. Each account is a partition; a transaction has one record in each of two.
//   - Spreaders write a few records to some partitions in a transaction.
//   - Two readers follow everything, one at read_committed and one at read_uncommitted, and observers ask for the offsets of the
//     copiers, and for last stable offsets.
//
// One in ten transactions is aborted on purpose. From time to time a client comes to its end. It is killed, so that neither its group nor
// its coordinator hears of it, and another takes its place; or the other is there first and fences it, of which the first learns only when it goes on;
// or, of spreaders, nobody ever comes back under its transactional id, so that its transaction, if it has one, ends by its timeout.
type txnLoad struct {
	target
	began time.Time
	hash  maphash.Seed
	seed  uint64
	slots []*slot

	processes atomic.Int32 // how many there were
	inputs    atomic.Int64 // sequence of the latest record of the input

	// underWay is held by each transfer until it is certain what became of it, and locked while a cut is made.
	underWay sync.RWMutex

	mu         sync.Mutex
	operations []check.Operation
	facts      map[check.ID]fact // of each record of a copier or mover
	told       []check.Told      // offsets of the copiers
	stable     []check.Told      // last stable offsets
	cuts       [][]int64
	acked      [partitions]int64  // highest sequence acknowledged, by partition of the input
	copied     [partitions]int64  // highest sequence whose copy was read at read_committed
	read       map[int32]int64    // by writer: highest sequence read at read_committed
	ends       [txnLogs]int64     // the offset after the highest one that was read, by any reader
	quietest   [txnLogs]quietness // for reads at read_committed
	outcomes   map[string]int     // how transactions and clients ended, for the log
	errors     []error
	marks      []mark
	doing      map[*incarnation]string // what each client does just now
}

// fact is what a record is about.
type fact struct {
	source check.ID // of which it is a copy
	amount int64    // that it moves
}

// quietness is how long nothing came.
type quietness struct {
	longest time.Duration
	since   time.Time
}

// newTxnLoad makes a load whose topics are there when it starts.
func newTxnLoad(seeds []string, seed uint64) *txnLoad {
	l := &txnLoad{
		target: target{seeds, []string{"txn-input", "txn-output", "txn-money", "txn-mixed"}},
		began:  time.Now(), hash: maphash.MakeSeed(), seed: seed,
		facts: make(map[check.ID]fact), read: make(map[int32]int64), outcomes: make(map[string]int),
		doing: make(map[*incarnation]string),
	}
	l.mark("the start")
	add := func(count int, name string, run func(*incarnation) error) {
		for i := range count {
			l.slots = append(l.slots, &slot{number: int32(len(l.slots) + 1), kind: name, name: fmt.Sprintf("%s-%d", name, i+1), run: run})
		}
	}
	add(copiers, copier, (*incarnation).copy)
	add(movers, mover, (*incarnation).move)
	add(spreaders, spreader, (*incarnation).spread)
	return l
}

// now is the time of the history.
func (l *txnLoad) now() time.Duration { return time.Since(l.began) }

// fail notes an error that no client may meet.
func (l *txnLoad) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, fmt.Errorf("at %s: %w", time.Now().UTC().Format("15:04:05.000"), err))
}

// count notes how something ended.
func (l *txnLoad) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes[what]++
}

// note adds an operation to the history.
func (l *txnLoad) note(o check.Operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, o)
}

// atWork tells which clients have not ended, and what they do.
func (l *txnLoad) atWork() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var clients []string
	for in, what := range l.doing {
		clients = append(clients, fmt.Sprintf("%s, its client %d: %s", in.id, in.number, what))
	}
	slices.Sort(clients)
	return strings.Join(clients, "; ")
}

// txnRunning is a transactional load at work.
type txnRunning struct {
	load                *txnLoad
	input, rest         errgroup.Group
	slots               sync.WaitGroup
	stopInput, stopRest context.CancelFunc
	stopSlots           context.CancelFunc
	killSlots           context.CancelFunc
}

// start starts all clients. They end with ctx at the latest.
func (l *txnLoad) start(ctx context.Context) *txnRunning {
	r := &txnRunning{load: l}
	writing, stopInput := context.WithCancel(ctx)
	living, killSlots := context.WithCancel(ctx)
	working, stopSlots := context.WithCancel(living)
	reading, stopRest := context.WithCancel(ctx)
	r.stopInput, r.stopSlots, r.killSlots, r.stopRest = stopInput, stopSlots, killSlots, stopRest
	r.input.Go(func() error { return l.writeInput(writing) })
	for _, s := range l.slots {
		r.slots.Go(func() { l.live(working, living, s, &r.slots) })
	}
	r.rest.Go(func() error { return l.follow(reading, kgo.ReadCommitted()) })
	r.rest.Go(func() error { return l.follow(reading, kgo.ReadUncommitted()) })
	r.rest.Go(func() error { return l.audit(reading) })
	r.rest.Go(func() error { return l.observe(reading, &l.told, check.Told{Group: 1}, groupOffsets) })
	r.rest.Go(func() error { return l.observe(reading, &l.told, check.Told{Group: 1, Stable: true}, groupOffsets) })
	r.rest.Go(func() error { return l.observe(reading, &l.stable, check.Told{}, l.stableOffsets) })
	return r
}

// finish lets the copiers copy all of the input, ends all clients, and waits until no transaction is open.
func (r *txnRunning) finish(ctx context.Context) error {
	defer r.stopRest()
	defer r.killSlots()
	r.stopInput()
	if err := r.input.Wait(); err != nil {
		return err
	}
	if err := r.load.caughtUp(ctx); err != nil {
		return err
	}
	r.stopSlots()
	ended := make(chan struct{})
	go func() { r.slots.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(progressWithin):
		return fmt.Errorf("transactional clients do not end within %v: %s", progressWithin, r.load.atWork())
	}
	if err := r.load.closed(ctx); err != nil {
		return err
	}
	r.stopRest()
	return r.rest.Wait()
}

// closed waits until no log has an open transaction, which may take as long as the broker gives one whose client is gone.
func (l *txnLoad) closed(ctx context.Context) error {
	const slack = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, txnTimeout+slack)
	defer cancel()
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	open := errors.New("nothing is known of them")
	err = await(ctx, func() string { return "without open transactions: " + open.Error() }, func() (bool, error) {
		open = l.open(ctx, kadm.NewClient(client))
		return open == nil, nil
	})
	return err
}

// open names a log with an open transaction.
func (l *txnLoad) open(ctx context.Context, client *kadm.Client) error {
	stable, err := client.ListCommittedOffsets(ctx, l.topics...)
	if err != nil {
		return err
	}
	ends, err := client.ListEndOffsets(ctx, l.topics...)
	if err != nil {
		return err
	}
	if err := errors.Join(stable.Error(), ends.Error()); err != nil {
		return err
	}
	for log := range txnLogs {
		topic, partition := l.place(log)
		lso, _ := stable.Lookup(topic, partition)
		end, _ := ends.Lookup(topic, partition)
		if lso.Offset != end.Offset {
			return fmt.Errorf("%s has its last stable offset at %d and its high watermark at %d", l.name(log), lso.Offset, end.Offset)
		}
	}
	return nil
}

// slot is a transactional id, or what comes in its place, and the clients that use it one after the other.
type slot struct {
	number int32  // the writer in the IDs of its records
	kind   string // of client
	name   string // its transactional id
	run    func(*incarnation) error

	sequence atomic.Int64 // of its latest record

	mu          sync.Mutex
	initialised int // the latest incarnation that has a producer id
	held        []func()
}

// settle calls f when it is certain what became of the transactions of an incarnation: when a later one has its producer id.
func (s *slot) settle(number int, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.initialised > number {
		f()
		return
	}
	s.held = append(s.held, f)
}

// settled says that an incarnation has its producer id, for which the broker has ended what those before it did.
func (s *slot) settled(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.initialised = max(s.initialised, number)
	for _, f := range s.held {
		f()
	}
	s.held = nil
}

// incarnation is one client of a slot.
type incarnation struct {
	*slot
	load    *txnLoad
	number  int
	id      string          // transactional
	process int32           // in the history
	rng     *rand.Rand      // its own
	alive   context.Context // ends when it is killed
	working context.Context // ends when it is to end in good order

	superseded atomic.Bool // another one is about to fence it, and starts when pausing is closed: in the middle of a transaction
	paused     sync.Once
	pausing    chan struct{}
}

// does says what the client does from now on; "" that it has ended.
func (in *incarnation) does(what string) {
	in.load.mu.Lock()
	defer in.load.mu.Unlock()
	if in.load.doing[in] = what; what == "" {
		delete(in.load.doing, in)
	}
}

// live runs one incarnation of a slot after the other until working ends. Those that are left behind are waited for by all.
func (l *txnLoad) live(working, living context.Context, s *slot, all *sync.WaitGroup) {
	rng := rand.New(rand.NewPCG(l.seed, uint64(s.number)))
	id := s.name
	for number := 1; working.Err() == nil; number++ {
		alive, kill := context.WithCancel(living)
		in := &incarnation{
			slot: s, load: l, number: number, id: id, process: l.processes.Add(1),
			rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), alive: alive, working: working, pausing: make(chan struct{}),
		}
		ended := make(chan struct{})
		all.Go(func() {
			defer close(ended)
			defer kill()
			defer in.does("")
			if err := s.run(in); err != nil && alive.Err() == nil {
				l.count(fmt.Sprintf("%s ended: %v", s.kind, err))
			}
		})
		life := time.NewTimer(s.life(rng))
		select {
		case <-working.Done():
		case <-ended:
			// What made it end may last.
			in.rest(restartPause)
		case <-life.C:
			id = in.end(rng, kill)
		}
		life.Stop()
	}
}

// life draws how long an incarnation lives.
func (s *slot) life(rng *rand.Rand) time.Duration {
	life := lifeLeast + upTo(rng, lifeMore)
	if s.kind == copier {
		life *= copierLife
	}
	return life
}

// end ends the client, or leaves that to its successor, and returns the transactional id of that.
func (in *incarnation) end(rng *rand.Rand, kill context.CancelFunc) string {
	switch way := rng.IntN(3); {
	case way == 0:
		in.load.count(in.kind + " to be fenced")
		in.superseded.Store(true)
		timer := time.NewTimer(fencedMost) // it may have nothing to do
		defer timer.Stop()
		select {
		case <-in.pausing:
		case <-timer.C:
		}
	case way == 1 && in.kind == spreader:
		kill()
		in.load.count(in.kind + " abandoned")
		return fmt.Sprintf("%s-after-%d", in.name, in.number)
	default:
		kill()
		in.load.count(in.kind + " killed")
	}
	return in.name
}
