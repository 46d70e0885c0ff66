// Package suricata runs Suricata as the inspection engine of one host: a child
// process in a network namespace without addresses, between two pairs of
// virtual links. The dataplane steers frames into one pair and takes them from
// the other; the engine copies every frame that no signature drops.
//
// It promises:
//   - The engine outlives the agent. [Start] finds one that runs and takes it
//     over, without a packet being held up.
//   - Each profile has signatures of its own, told apart by the VLAN id that the
//     dataplane pushes. [Engine.Load] changes them all or not at all, while
//     traffic flows, and believes the engine only what it has verified.
//   - A crash is reported at once and a hang within a tenth of a second, each
//     direction judged by frames of its own that go the way of the traffic. What
//     becomes of traffic meanwhile is the dataplane's to decide.
//   - Every event reaches [Engine.Run]'s report, also those written while no
//     agent ran, and none twice, but for an agent killed between the two.
//
// It never gives the engine more than the right to raw sockets in its namespace:
// it runs as a user of its own without other privileges and sees, through
// Landlock, its configuration and its log. The agent never trusts what lies in
// the engine's directory: it follows no link there and bounds what it reads.
//
// Locks are taken in the order loading, applying, mu.
package suricata

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// Config says where the engine lives. Host, Namespace and Dir are needed.
type Config struct {
	// Host names the steering links, so that they are the same at every start.
	Host string
	// Namespace is the engine's network namespace, which must be nobody else's.
	Namespace string
	// Dir is the engine's directory, best on a tmpfs such as /run. Everyone must
	// be able to pass through the directories above it.
	Dir string
	// MTU is the largest among the workloads' interfaces, in bytes; 0 is 1500.
	// Frames that are longer cannot be steered.
	MTU int
	// Program is the engine's; empty is "suricata" in the PATH.
	Program string
	// MaxLog is the size in bytes at which the event log is put aside; 0 is 16
	// MiB. While no agent runs it may grow to four times that.
	MaxLog int64
	// Logger hears what happens; nil is slog.Default.
	Logger *slog.Logger
}

// MaxMTU is the largest MTU of which the engine takes frames inline, in bytes.
const MaxMTU = 32678 - tagBytes

// Defaults of Config.
const (
	defaultMTU    = 1500
	defaultMaxLog = 16 << 20
)

func (c Config) mtu() int {
	if c.MTU == 0 {
		return defaultMTU
	}
	return c.MTU
}

// Validate says all that is wrong at once.
func (c Config) Validate() error {
	var faults bocage.Faults
	if c.Host == "" {
		faults.Add("host", "is empty: the steering links are named after it")
	}
	if c.Namespace == "" {
		faults.Add("namespace", "is empty: the engine needs one of its own")
	}
	if !filepath.IsAbs(c.Dir) {
		faults.Add("dir", "%q is not an absolute path", c.Dir)
	}
	if strings.ContainsFunc(c.Dir, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
		faults.Add("dir", "%q holds characters that the engine's configuration cannot", c.Dir)
	}
	if n := len(layout{c.Dir}.socket()); n > maxSocketPath {
		faults.Add("dir", "is too long: the path of the engine's socket would have %d bytes of at most %d", n, maxSocketPath)
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > MaxMTU) {
		faults.Add("mtu", "%d is not between 576 and %d bytes", c.MTU, MaxMTU)
	}
	if c.MaxLog < 0 {
		faults.Add("maxLog", "%d is negative", c.MaxLog)
	}
	return faults.Err()
}

// Engine is the inspection engine of this host, as the agent holds it.
type Engine struct {
	cfg             Config
	layout          layout
	log             *slog.Logger
	program         string // absolute
	uid             int    // the engine's user, and group
	outside, inside uint32
	prober          *prober
	tail            *tail
	lock            *os.File
	counters        counters

	loading  sync.Mutex // one Load at a time
	applying sync.Mutex // one change of the running engine's profiles, or of the process
	mu       sync.Mutex // guards process and ledger, whose values are replaced, never changed
	process  *process   // nil while none runs
	ledger   ledger
	names    atomic.Pointer[map[uint16]string]

	closing sync.Once
}

// Patience at the start and the end of a process.
const (
	startPatience = 3 * time.Minute // with all its signatures, on a busy machine
	killPatience  = 10 * time.Second
	startPoll     = 10 * time.Millisecond
)

// Start makes what is missing of the steering links, in the calling thread's
// network namespace, and takes over the engine that runs or starts one, with the
// profiles that were loaded last. It returns when the engine answers.
func Start(ctx context.Context, cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("start inspection: %w", err)
	}
	e, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("start inspection: %w", err)
	}
	if err := e.begin(ctx); err != nil {
		e.Close()
		return nil, fmt.Errorf("start inspection: %w", err)
	}
	return e, nil
}

// open takes the directory and makes everything but the process.
func open(cfg Config) (_ *Engine, err error) {
	if cfg.MaxLog == 0 {
		cfg.MaxLog = defaultMaxLog
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	program := cfg.Program
	if program == "" {
		program = "suricata"
	}
	if program, err = exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("%w: install the package suricata, 7.0 or later (Debian 12 has it in bookworm-backports)", err)
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, layout: layout{filepath.Clean(cfg.Dir)}, log: cfg.Logger, program: program}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	if e.uid, err = e.layout.prepare(); err != nil {
		return nil, err
	}
	if e.lock, err = e.layout.acquire(); err != nil {
		return nil, err
	}
	if e.outside, e.inside, err = steer(cfg); err != nil {
		return nil, err
	}
	if e.prober, err = newProber(e.outside, e.inside); err != nil {
		return nil, err
	}
	if e.ledger, err = readLedger(e.layout.ledger()); err != nil {
		return nil, err
	}
	e.tail, err = openTail(&tail{path: e.layout.eve(), before: e.layout.eveBefore(), limit: cfg.MaxLog, reopen: e.reopenLog,
		skipped: func(n int) { e.counters.malformed.Add(uint64(n)) }, log: e.log}, e.layout.position())
	return e, err
}

// begin takes over the running engine or starts one.
func (e *Engine) begin(ctx context.Context) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	if err := e.writeConfiguration(e.snapshot().Wanted); err != nil {
		return err
	}
	found, err := e.adopt(ctx)
	if err != nil || found {
		return err
	}
	return e.launch(ctx)
}

// Ports returns the indexes of the steering links' host-side ends. Frames to a
// workload enter the engine at outside and leave it at inside, frames from a
// workload the other way round.
func (e *Engine) Ports() (outside, inside uint32) { return e.outside, e.inside }

// Close lets go of the engine, which goes on. Run does it at its end.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		if p := e.running(); p != nil {
			p.release()
		}
		if e.prober != nil {
			e.prober.close()
		}
		if e.tail != nil {
			e.tail.close()
		}
		if e.lock != nil {
			e.lock.Close()
		}
	})
	return nil
}

// Remove ends the engine, whoever started it, and takes away its namespace, its
// links and its files. Nothing there is nothing to do.
func Remove(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("remove inspection: %w", err)
	}
	l := layout{filepath.Clean(cfg.Dir)}
	var lock *os.File
	if _, err := os.Stat(l.dir); err == nil {
		if lock, err = l.acquire(); err != nil {
			return fmt.Errorf("remove inspection: %w", err)
		}
		defer lock.Close()
	}
	err := errors.Join(endRecorded(l), unsteer(cfg))
	if err == nil && lock != nil {
		err = l.remove()
	}
	if err != nil {
		return fmt.Errorf("remove inspection: %w", err)
	}
	return nil
}

// endRecorded kills the engine that the directory names, if it still runs: its
// namespace may have lost its name.
func endRecorded(l layout) error {
	record, err := readProcessRecord(l)
	if err != nil {
		return err
	}
	p, err := watchProcess(record.processID)
	if err != nil {
		return nil // it is gone
	}
	defer p.release()
	if !runs(p.id.Pid, l.configuration()) {
		return nil
	}
	return p.kill(killPatience)
}

// processRecord is what engine.json holds.
type processRecord struct {
	processID
	Settings string `json:"settings"` // what it was started with
}

const processRecordSize = 256

func readProcessRecord(l layout) (processRecord, error) {
	data, err := os.ReadFile(l.process())
	if errors.Is(err, fs.ErrNotExist) {
		return processRecord{}, nil
	}
	if err != nil {
		return processRecord{}, err
	}
	var r processRecord
	if json.Unmarshal(data, &r) != nil {
		return processRecord{}, nil // a torn record names nobody
	}
	return r, nil
}

func writeProcessRecord(l layout, r processRecord) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.process(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(fixedRecord(f, processRecordSize, data), f.Close())
}

// adopt takes over the engine that an agent before this one started: it must be
// that very process, in our namespace, with our settings, and it must answer.
// Any other engine of this directory is ended.
func (e *Engine) adopt(ctx context.Context) (bool, error) {
	record, err := readProcessRecord(e.layout)
	if err != nil {
		return false, err
	}
	pids, err := host.Pids(e.cfg.Namespace)
	if err != nil {
		return false, err
	}
	adopted := false
	for _, pid := range pids {
		if !runs(pid, e.layout.configuration()) {
			continue
		}
		stat, err := readStat(pid)
		if err != nil {
			continue // it has just ended
		}
		p, err := watchProcess(processID{pid, stat.start})
		if err != nil {
			continue
		}
		if p.id == record.processID && record.Settings == e.settingsDigest() && e.answers(ctx, p) {
			e.log.Info("inspection engine taken over", slog.Int("pid", pid))
			e.hold(p, func(l *ledger) { l.found(p.id) })
			adopted = true
			continue
		}
		e.log.Warn("inspection engine of an agent before is unfit and ended", slog.Int("pid", pid))
		err = p.kill(killPatience)
		p.release()
		if err != nil {
			return false, err
		}
	}
	if adopted {
		return true, nil
	}
	return false, endRecorded(e.layout) // it may live on in a namespace that lost its name
}

// answers asks an engine that was found for a sign of life. One that is busy
// with a Load does not answer for a while, but passes probes.
func (e *Engine) answers(ctx context.Context, p *process) bool {
	const busyPatience = time.Minute
	until := time.Now().Add(busyPatience)
	for ctx.Err() == nil && p.alive() && time.Now().Before(until) {
		engine, err := dial(ctx, e.layout.socket(), answerPatience/2)
		if err == nil {
			_, err = engine.run("uptime", nil, answerPatience/2)
			engine.close()
		}
		if err == nil {
			return true
		}
		if !e.passes(ctx) {
			return false
		}
	}
	return false
}

// passes says whether frames get through both ways.
func (e *Engine) passes(ctx context.Context) bool {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	e.prober.reset()
	for range int(firstPatience / probeInterval) {
		if e.prober.beat(time.Now()) != nil {
			return false
		}
		if e.prober.answered() >= steadyAnswers {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return false
}

// launch starts a process with the wanted profiles in it, and waits until it
// answers and has proved that it has them whole; applying is held.
func (e *Engine) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	wanted := e.snapshot().Wanted
	if err := e.writeConfiguration(wanted); err != nil {
		return err
	}
	if e.engineLogSize() > e.cfg.MaxLog {
		os.Remove(e.layout.engineLog()) // a new one; what is old is told
	}
	os.Remove(e.layout.socket())
	said := e.engineLogSize()
	argv := confine(e.uid, ",+net_raw", fullLogs*e.cfg.MaxLog, e.program, "-c", e.layout.configuration(), "--af-packet", "-l", e.layout.log())
	id, err := launch(e.cfg.Namespace, argv, e.layout.output())
	if err != nil {
		return err
	}
	if err := writeProcessRecord(e.layout, processRecord{id, e.settingsDigest()}); err != nil {
		// A later agent finds it by its namespace, and replaces it.
		e.log.Error("noting the inspection engine's process goes wrong", slog.Any("error", err))
	}
	p, err := watchProcess(id)
	if err != nil {
		return errors.Join(fmt.Errorf("engine ended at once: %s", e.lastWords(said)), err)
	}
	if err := e.await(ctx, p, wanted); err != nil {
		err = fmt.Errorf("engine does not start: %w: %s", err, e.lastWords(said))
		err = errors.Join(err, p.kill(killPatience))
		p.release()
		return err
	}
	e.log.Info("inspection engine started", slog.Int("pid", id.Pid), slog.Int("profiles", len(wanted)))
	e.hold(p, func(l *ledger) { l.started(id) })
	return nil
}

// await waits for the engine's first answer and checks its profiles.
func (e *Engine) await(ctx context.Context, p *process, wanted []profile) error {
	ticker := time.NewTicker(startPoll)
	defer ticker.Stop()
	for {
		engine, err := dial(ctx, e.layout.socket(), answerPatience)
		if err == nil {
			defer engine.close()
			return e.verifyAll(engine, wanted)
		}
		select {
		case <-p.gone:
			return errors.New("it ended")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-ticker.C:
		}
	}
}

// lastWords is what a dead engine complained of.
func (e *Engine) lastWords(since int64) string {
	log, _ := e.engineLogSince(since)
	output, _ := os.ReadFile(e.layout.output())
	said := readEngineLog(append(log, output...))
	for _, f := range said.Faults {
		said.Errors = append(said.Errors, f.Words+": "+f.Signature)
	}
	if len(said.Errors) == 0 {
		return "it said nothing"
	}
	return strings.Join(said.Errors[:min(len(said.Errors), maxFaults)], "; ")
}

// writeConfiguration writes what the engine reads at its start.
func (e *Engine) writeConfiguration(wanted []profile) error {
	engine, err := settings{layout: e.layout, Tenants: wanted}.render()
	if err != nil {
		return err
	}
	check, err := settings{layout: e.layout, Check: true}.render()
	if err != nil {
		return err
	}
	return errors.Join(
		writeFor(e.uid, e.layout.configuration(), engine),
		writeFor(e.uid, e.layout.check(), check),
		writeFor(e.uid, e.layout.classification(), []byte(classification)),
		writeFor(e.uid, e.layout.reference(), []byte(reference)),
		writeFor(e.uid, e.layout.threshold(), nil))
}

// settingsDigest names what an engine cannot change while it runs: everything
// but the profiles, and the links that it has open.
func (e *Engine) settingsDigest() string {
	text, err := settings{layout: e.layout}.render()
	if err != nil {
		return "" // fits no engine
	}
	sum := sha256.Sum256(fmt.Appendf(text, "\n%d %d %s %d", e.outside, e.inside, e.program, e.uid))
	return hex.EncodeToString(sum[:12])
}

// hold makes a process the running engine.
func (e *Engine) hold(p *process, note func(*ledger)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.process = p
	note(&e.ledger)
	if err := e.ledger.save(e.layout.ledger()); err != nil {
		// Then a later agent trusts none of the tenants and loads them again.
		e.log.Error("noting inspection profiles goes wrong", slog.Any("error", err))
	}
	e.publishNames()
}

// publishNames lets the reader of events know the profiles; mu is held.
func (e *Engine) publishNames() {
	names := e.ledger.names()
	e.names.Store(&names)
}

// running returns the engine's process, or nil.
func (e *Engine) running() *process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process
}

func (e *Engine) snapshot() ledger {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ledger
}

func (e *Engine) reopenLog() error {
	engine, err := dial(context.Background(), e.layout.socket(), answerPatience)
	if err != nil {
		return err
	}
	defer engine.close()
	_, err = engine.run("reopen-log-files", nil, answerPatience)
	return err
}
