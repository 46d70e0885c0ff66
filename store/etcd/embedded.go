package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"bocage.dev/bocage/store"
)

const (
	// maxRequest leaves room for keys, preconditions and framing.
	maxRequest = store.MaxApply + store.MaxOps*(2*store.MaxKey+64)
	// maxSocketPath is what fits into sockaddr_un (unix(7)).
	maxSocketPath = 107

	// leastThreads leaves two places when the log, the database and the audit trail
	// all wait for the disk, and one more for a compaction.
	leastThreads = 6

	defaultQuota     = 2 << 30
	defaultReserve   = 256 << 20
	leastReserve     = 128 << 20
	defaultRetention = 10 * time.Minute
	startPatience    = time.Minute
	stopPatience     = 15 * time.Second

	reliefInterval = 30 * time.Second
	reliefPause    = time.Second // between two that were asked for
)

// Config says how to run the embedded server. Only Dir is needed.
type Config struct {
	// Dir holds the data; it is created with mode 0700.
	Dir string
	// Quota in bytes is how large the database may grow (0: 2 GiB). Past it
	// writes are refused with store.ErrFull.
	Quota int64
	// Reserve in bytes is how much of the disk has to stay free (0: 256 MiB; at
	// least 128 MiB, since etcd claims 64 MiB at a time for its log). Below it
	// writes are refused with store.ErrFull: etcd itself would end.
	Reserve int64
	// Retention is how long the history is kept that watches resume from and
	// older revisions are read from (0: 10 minutes).
	Retention time.Duration
	// Socket, if set, is a path in a directory that only its owner may enter;
	// etcdctl reaches the server there, and so does everybody who may enter.
	Socket string
	Logger *slog.Logger
}

// Validate returns all that is wrong with a Config.
func (c Config) Validate() error {
	var faults []error
	if c.Dir == "" {
		faults = append(faults, errors.New("there is no directory for the data"))
	}
	if c.Quota < 0 || c.Reserve < 0 || c.Retention < 0 {
		faults = append(faults, fmt.Errorf("quota %d, reserve %d and retention %s may not be negative", c.Quota, c.Reserve, c.Retention))
	}
	if 0 < c.Reserve && c.Reserve < leastReserve {
		faults = append(faults, fmt.Errorf("a reserve of %d bytes is less than %d, and etcd would end on a full disk", c.Reserve, int64(leastReserve)))
	}
	if c.Socket != "" && (!filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocketPath) {
		faults = append(faults, fmt.Errorf("socket %s is not an absolute path of at most %d bytes", c.Socket, maxSocketPath))
	}
	return errors.Join(faults...)
}

// engine is the embedded server and what keeps it in order.
type engine struct {
	config Config
	logger *slog.Logger
	lock   *os.File
	server *embed.Etcd
	client *clientv3.Client

	fatal  atomic.Pointer[string] // why the server ended itself
	failed chan struct{}          // closed with it
	ask    chan struct{}          // holds a token when relief is wanted
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// Open starts a server on the data in a directory and returns once it takes
// writes. Only one process may use a directory at a time.
func Open(config Config) (*Store, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if config.Quota == 0 {
		config.Quota = defaultQuota
	}
	if config.Reserve == 0 {
		config.Reserve = defaultReserve
	}
	if config.Retention == 0 {
		config.Retention = defaultRetention
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	e := &engine{config: config, logger: config.Logger, failed: make(chan struct{}), ask: make(chan struct{}, 1)}
	if err := e.start(); err != nil {
		return nil, fmt.Errorf("open store in %s: %w", config.Dir, err)
	}
	return newStore(e.client, DefaultPrefix, e, e.close), nil
}

func (e *engine) start() (err error) {
	if err := os.MkdirAll(e.config.Dir, 0o700); err != nil {
		return err
	}
	if e.lock, err = lockDir(e.config.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if err := e.checkSocket(); err != nil {
		return err
	}
	if err := e.checkData(); err != nil {
		return err
	}
	if e.server, err = e.launch(); err != nil {
		return err
	}
	late := time.NewTimer(startPatience)
	defer late.Stop()
	select {
	case <-e.server.Server.ReadyNotify():
	case <-e.failed:
		return e.failure()
	case err := <-e.server.Err():
		return err
	case <-late.C:
		return fmt.Errorf("etcd is not ready after %s: %s", startPatience, repair)
	}
	e.client = v3client.New(e.server.Server)
	var background context.Context
	background, e.stop = context.WithCancel(context.Background())
	e.done.Go(func() { e.keepRoom(background) })
	return nil
}

// lockDir keeps a second process out: etcd would wait for ever.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process uses it: stop that one, or choose another directory (%w)", err), lock.Close())
	}
	return lock, nil
}

// checkSocket refuses a place that others can reach: the server asks nobody for
// a name.
func (e *engine) checkSocket() error {
	if e.config.Socket == "" {
		return nil
	}
	dir := filepath.Dir(e.config.Socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("others may enter %s (mode %#o), where the socket would be: run chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

const repair = "if the data is damaged, restore it from a backup, or move the directory away to begin with an empty store"

// checkData finds a database whose log is missing, with which etcd would wait for
// ever.
func (e *engine) checkData() error {
	member := filepath.Join(e.config.Dir, "etcd", "member")
	logs, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(member, "snap", "db")); err == nil && len(logs) == 0 {
		return fmt.Errorf("%s holds a database without its log: %s", member, repair)
	}
	return nil
}

// launch starts the server in a goroutine of its own, because etcd answers a
// damaged file by ending the goroutine, a panic, or waiting for one that ended.
func (e *engine) launch() (*embed.Etcd, error) {
	type outcome struct {
		server *embed.Etcd
		err    error
	}
	result := make(chan outcome, 1)
	go func() {
		o := outcome{err: errors.New("etcd ended while starting")}
		defer func() {
			if r := recover(); r != nil {
				o = outcome{err: fmt.Errorf("etcd: %v", r)}
			}
			result <- o
		}()
		o.server, o.err = embed.StartEtcd(e.etcdConfig())
	}()
	var o outcome
	select {
	case o = <-result:
	case <-e.failed:
	}
	if why := e.fatal.Load(); why != nil {
		o.err = fmt.Errorf("etcd: %s", *why)
	}
	if o.err != nil {
		return nil, fmt.Errorf("%w: %s", o.err, repair)
	}
	return o.server, nil
}

func (e *engine) etcdConfig() *embed.Config {
	c := embed.NewConfig()
	c.Name = "bocage"
	c.Dir = filepath.Join(e.config.Dir, "etcd")
	// A single member needs no peers. The address only names it in its own
	// membership list; nothing listens or dials there.
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = "bocage"
	c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil
	if e.config.Socket != "" {
		c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: e.config.Socket}}
		c.AdvertiseClientUrls = c.ListenClientUrls
	}
	c.EnableGRPCGateway = false
	c.CORS, c.HostWhitelist = nil, nil
	// Nobody else stands for election, so there is nothing to wait for.
	c.TickMs, c.ElectionMs = 20, 100

	c.QuotaBackendBytes = e.config.Quota
	c.MaxTxnOps = store.MaxOps
	c.MaxRequestBytes = maxRequest
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = e.config.Retention.String()
	c.WatchProgressNotifyInterval = 5 * time.Second
	c.UnsafeNoFsync = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(e.logger, e.onFatal))
	return c
}

// onFatal is called where etcd would end the process: on a disk that fails, or
// data that makes no sense. What was acknowledged is safe; from here on
// everything is refused.
func (e *engine) onFatal(message string) {
	if e.fatal.CompareAndSwap(nil, &message) {
		close(e.failed)
	}
}

// failure says why the server ended itself, if it did.
func (e *engine) failure() error {
	why := e.fatal.Load()
	if why == nil {
		return nil
	}
	return fmt.Errorf("etcd ended: %s: see to the disk of %s and restart; what was acknowledged is safe", *why, e.config.Dir)
}

// UseThreads lets a program with an embedded server run enough Go at a time, unless
// GOMAXPROCS in its environment says how much. A thread that waits for the disk
// keeps its place until the runtime notices, and on few processors etcd's log, its
// database and the audit trail, which wait at the same time, leave none to others.
func UseThreads() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastThreads {
		runtime.GOMAXPROCS(leastThreads)
	}
}

// Failed is closed when the embedded server had to end itself, say on a disk that
// fails, or when an etcd elsewhere is not what it was, since it was restored from a
// backup: the process should end and be restarted. [Store.Failure] says why.
func (s *Store) Failed() <-chan struct{} {
	if s.engine == nil {
		return s.history.failed
	}
	return s.engine.failed
}

// Failure says why the store is of no use any more; nil while it is.
func (s *Store) Failure() error {
	if s.engine == nil {
		return s.history.failure()
	}
	return s.engine.failure()
}

func (e *engine) close() (err error) {
	if e.stop != nil {
		e.stop()
	}
	e.done.Wait()
	if e.client != nil {
		err = e.client.Close()
		if errors.Is(err, context.Canceled) {
			err = nil // it says that it has closed
		}
	}
	if e.server != nil {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			e.server.Close()
		}()
		select {
		case <-closed:
		case <-time.After(stopPatience): // it cannot stop what ended itself
			return errors.Join(err, e.failure(), fmt.Errorf("etcd did not stop within %s", stopPatience))
		}
	}
	return errors.Join(err, e.lock.Close())
}

// Backup writes a snapshot of the embedded server's data, as etcdutl restores it.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	if s.engine == nil {
		return errors.New("back up store: this etcd runs elsewhere: use etcdctl snapshot save")
	}
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("back up store: %w", err)
	}
	snapshot, err := s.client.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("back up store: %w", err)
	}
	_, err = io.Copy(w, snapshot)
	if err = errors.Join(err, snapshot.Close()); err != nil {
		return fmt.Errorf("back up store: %w", err)
	}
	return nil
}

// room refuses a write that the disk might not take.
func (e *engine) room() error {
	free, err := freeBytes(e.config.Dir)
	if err != nil {
		return fmt.Errorf("look at the disk of %s: %w", e.config.Dir, err)
	}
	if free < e.config.Reserve {
		return fmt.Errorf("%w: the disk of %s has %d MiB left and %d MiB have to stay free: make room on it; reads and deletions go on",
			store.ErrFull, e.config.Dir, free>>20, e.config.Reserve>>20)
	}
	return nil
}

func freeBytes(dir string) (int64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, err
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// full is what a write gets past the quota; it also asks for relief.
func (e *engine) full() error {
	select {
	case e.ask <- struct{}{}:
	default:
	}
	return fmt.Errorf("%w: %d of %d MiB of its quota are in use: delete what is not needed, and space comes back within a minute, or raise the quota and restart; reads and deletions go on",
		store.ErrFull, e.server.Server.Backend().SizeInUse()>>20, e.config.Quota>>20)
}

// keepRoom gives the space of deleted and outdated values back, regularly and
// when a write was refused.
func (e *engine) keepRoom(ctx context.Context) {
	ticker := time.NewTicker(reliefInterval)
	defer ticker.Stop()
	for {
		if err := e.relieve(ctx); err != nil && ctx.Err() == nil {
			e.logger.Error("store space not given back", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reliefPause):
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-e.ask:
		}
	}
}

// relieve compacts and defragments when most of the file is free or the quota has
// been hit, and lets writes in again if that made room.
func (e *engine) relieve(ctx context.Context) error {
	backend := e.server.Server.Backend()
	alarms, err := e.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list alarms: %w", err)
	}
	full := false
	for _, a := range alarms.Alarms {
		full = full || a.Alarm == pb.AlarmType_NOSPACE
	}
	wasteful := backend.Size() > e.config.Quota/2 && backend.SizeInUse() < backend.Size()/2
	if !full && !wasteful {
		return nil
	}
	if full { // no time to wait for the retention
		now, err := e.client.Get(ctx, DefaultPrefix, clientv3.WithCountOnly())
		if err != nil {
			return fmt.Errorf("compact: %w", err)
		}
		if err := e.compact(ctx, now.Header.Revision); err != nil {
			return fmt.Errorf("compact: %w", err)
		}
	}
	if backend.SizeInUse() < backend.Size()-backend.Size()/8 {
		if err := backend.Defrag(); err != nil {
			return fmt.Errorf("defragment: %w", err)
		}
	}
	if full && backend.Size() < e.config.Quota-e.config.Quota/16 {
		if _, err := e.client.AlarmDisarm(ctx, new(clientv3.AlarmMember)); err != nil {
			return fmt.Errorf("disarm alarm: %w", err)
		}
	}
	e.logger.Info("store space looked after", "full", full, "bytes", backend.Size(), "bytes_in_use", backend.SizeInUse(), "quota_bytes", e.config.Quota)
	return nil
}

func (e *engine) compact(ctx context.Context, revision int64) error {
	_, err := e.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if err != nil && !isCompacted(err) {
		return err
	}
	return nil
}
