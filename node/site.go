package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

// Several controllers may share one etcd: they are a site. What they have to agree on
// besides declarations stands there, too: whose certificates count, who is called
// what, and what time it is.

// Etcd names a cluster that controllers share. Without endpoints a controller has a
// store of its own.
type Etcd struct {
	Endpoints []string
	// CAFile has the certificates that the cluster's are signed by (empty: the
	// system's), CertFile and KeyFile this controller's own for it.
	CAFile, CertFile, KeyFile string
	// Prefix of all keys, for several sites on one cluster.
	Prefix string
}

// validate says what is wrong with it.
func (e Etcd) validate() error {
	var faults []error
	for _, endpoint := range e.Endpoints {
		open, isOpen := strings.CutPrefix(endpoint, "http://")
		switch {
		case strings.HasPrefix(endpoint, "https://"), strings.HasPrefix(endpoint, "unix://"):
		case isOpen && (strings.HasPrefix(open, "127.0.0.1:") || strings.HasPrefix(open, "[::1]:")):
		default:
			faults = append(faults, fmt.Errorf("--etcd %q is none of https://HOST:PORT, unix:///PATH, and http:// to this machine itself", endpoint))
		}
	}
	if (e.CertFile == "") != (e.KeyFile == "") {
		faults = append(faults, errors.New("--etcd-cert and --etcd-key go together"))
	}
	if len(e.Endpoints) == 0 && e.CAFile+e.CertFile+e.Prefix != "" {
		faults = append(faults, errors.New("--etcd-ca, --etcd-cert, --etcd-key and --etcd-prefix are about a shared etcd: name it with --etcd"))
	}
	return errors.Join(faults...)
}

// tls is how the cluster is spoken to, nil for what is on this machine.
func (e Etcd) tls() (*tls.Config, error) {
	if !slices.ContainsFunc(e.Endpoints, func(endpoint string) bool { return strings.HasPrefix(endpoint, "https://") }) {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		data, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("--etcd-ca: %s holds no PEM certificate", e.CAFile)
		}
	}
	if e.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile); err != nil {
			return nil, fmt.Errorf("--etcd-cert and --etcd-key: %w", err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile) // it may have been renewed
			return &pair, err
		}
	}
	return config, nil
}

// openStore opens the store of a controller: its own, or that of its site.
func openStore(ctx context.Context, cfg Config) (store.Store, error) {
	opened, err := openEtcd(ctx, cfg)
	if err != nil {
		return nil, err // and no store that is a nil pointer
	}
	return opened, nil
}

func openEtcd(ctx context.Context, cfg Config) (*etcd.Store, error) {
	if len(cfg.Etcd.Endpoints) == 0 {
		return etcd.Open(etcd.Config{Dir: cfg.controllerDir("state"), Logger: cfg.Logger})
	}
	if own := filepath.Join(cfg.controllerDir("state"), "etcd"); exists(own) {
		cfg.Logger.Warn("the declarations in a store of this controller's own are not those of its site: bring them over, or remove the folder", "dir", own)
	}
	config, err := cfg.Etcd.tls()
	if err != nil {
		return nil, err
	}
	return etcd.Connect(ctx, etcd.Cluster{Endpoints: cfg.Etcd.Endpoints, TLS: config, Prefix: cfg.Etcd.Prefix, Logger: cfg.Logger})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

const (
	// siteKey names whose certificates count at a site.
	siteKey = "site/authority"
	// claimsPrefix has the controllers of a site, by name.
	claimsPrefix = "site/controllers/"

	// beatEvery is how often a controller says that it lives and what time it is.
	// beatsLate is after how long without a word it counts as gone.
	beatEvery = 2 * time.Second
	beatsLate = 6 * beatEvery
)

// authorityOf is what a site's authority is known by.
type authorityOf struct {
	TrustDomain string `json:"trustDomain"`
	Fingerprint string `json:"fingerprint"`
}

// openAuthority opens the certificate authority. Those of a site have one: the first
// controller makes it, and people bring it to the others, since a store that many read
// is no place for its key.
func openAuthority(ctx context.Context, cfg Config, s store.Store) (*identity.Authority, error) {
	dir := cfg.controllerDir("authority")
	if len(cfg.Etcd.Endpoints) == 0 {
		return identity.OpenAuthority(dir, cfg.TrustDomain)
	}
	const bring = "as root, copy the folder %s of another controller of the site to %s, keeping its mode, and start again"
	of, err := readAuthorityOf(ctx, s)
	if err != nil {
		return nil, err
	}
	if of != nil && !identity.HasAuthority(dir) {
		return nil, fmt.Errorf("the store belongs to a site that has a certificate authority (trust domain %s, %s), and this controller has none: "+bring, of.TrustDomain, of.Fingerprint, filepath.Base(dir), dir)
	}
	a, err := identity.OpenAuthority(dir, cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	own := authorityOf{a.TrustDomain(), a.Fingerprint()}
	if of == nil {
		value, err := json.Marshal(own)
		if err != nil {
			return nil, err
		}
		if _, err = store.Put(ctx, s, siteKey, value, store.Absent); err == nil {
			return a, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, fmt.Errorf("say whose certificates count at the site: %w", err)
		}
		if of, err = readAuthorityOf(ctx, s); err != nil || of == nil {
			return nil, errors.Join(errors.New("read whose certificates count at the site"), err)
		}
	}
	if *of != own {
		return nil, fmt.Errorf("the store belongs to a site with the certificate authority %s of trust domain %s, and that in %s is %s of %s: agents would trust only one of them. If this controller is of that site, "+bring+"; if not, give it another etcd or another --etcd-prefix",
			of.Fingerprint, of.TrustDomain, dir, own.Fingerprint, own.TrustDomain, filepath.Base(dir), dir)
	}
	return a, nil
}

func readAuthorityOf(ctx context.Context, s store.Store) (*authorityOf, error) {
	entry, err := s.Get(ctx, siteKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	var of authorityOf
	if err == nil {
		err = json.Unmarshal(entry.Value, &of)
	}
	if err != nil {
		return nil, fmt.Errorf("read whose certificates count at the site: %w", err)
	}
	return &of, nil
}

// presence is what a controller says of itself, again and again.
type presence struct {
	// Instance is that of its state folder: two folders of one name are two controllers.
	Instance string `json:"instance"`
	// Since is the revision at which this process came: that of its first word, where it
	// says none. The least is the senior.
	Since store.Revision `json:"since,omitempty"`
	// Wall is what its machine says that the time is, Agreed what it goes by.
	Wall   time.Time `json:"wall"`
	Agreed time.Time `json:"agreed"`
}

// member is one controller's part in a site.
type member struct {
	name     string
	instance string
	store    store.Store
	clock    *siteClock
	logger   *slog.Logger
	since    store.Revision
	revision store.Revision // of its claim
	moved    func()         // called when the agreed time is suddenly another
}

// joinSite claims the controller's name and learns what time it is at the site: when
// it returns, the clock goes by what others say, if there are others.
func joinSite(ctx context.Context, cfg Config, instance string, s store.Store, clock *siteClock) (*member, error) {
	j := &member{name: cfg.Host, instance: instance, store: s, clock: clock, logger: cfg.Logger, moved: func() {}}
	clock.called(j.name)
	entries, at, err := s.List(ctx, claimsPrefix, "", 0, 0)
	if err != nil {
		return nil, fmt.Errorf("look who is at the site: %w", err)
	}
	others := map[string]bool{} // by key
	for _, entry := range entries {
		var c presence
		if err := json.Unmarshal(entry.Value, &c); err != nil {
			return nil, fmt.Errorf("read %s: %w", entry.Key, err)
		}
		own := entry.Key == claimsPrefix+j.name
		if own {
			j.revision = entry.Revision
		}
		if !own || c.Instance != instance {
			others[entry.Key] = true
		}
	}
	if err := j.listen(ctx, others, at); err != nil {
		return nil, err
	}
	if err := j.beat(ctx); err != nil {
		return nil, fmt.Errorf("claim the name %s: %w", j.name, err)
	}
	return j, j.meet(ctx, at)
}

// meet hears who came at the same time. Who claims later finds the other's claim, so
// the junior of two goes by the senior's time before it makes anything.
func (j *member) meet(ctx context.Context, after store.Revision) error {
	entries, _, err := j.store.List(ctx, claimsPrefix, "", 0, 0)
	if err != nil {
		return fmt.Errorf("look who is at the site: %w", err)
	}
	for _, entry := range entries {
		if entry.Revision > after {
			j.hear(store.Event{Key: entry.Key, Value: entry.Value, Revision: entry.Revision})
		}
	}
	j.clock.begin()
	return nil
}

// listen waits until everybody who lives has been heard, or would have been.
func (j *member) listen(ctx context.Context, others map[string]bool, at store.Revision) error {
	if len(others) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*beatEvery)
	defer cancel()
	w, err := j.store.Watch(ctx, claimsPrefix, at)
	if err != nil {
		return fmt.Errorf("look who is at the site: %w", err)
	}
	for e := range w.Events() {
		if e.Progress || e.Deleted() {
			continue
		}
		if e.Key == claimsPrefix+j.name {
			return j.taken()
		}
		j.hear(e)
		if delete(others, e.Key); len(others) == 0 {
			return nil
		}
	}
	if err := w.Err(); err != nil {
		return fmt.Errorf("look who is at the site: %w", err)
	}
	return nil
}

func (j *member) taken() error {
	return fmt.Errorf("another controller called %s is at work in this store, from another state folder: give one of them another name with --host", j.name)
}

// hear notes what another controller says.
func (j *member) hear(e store.Event) {
	name := strings.TrimPrefix(e.Key, claimsPrefix)
	if name == j.name {
		return
	}
	if e.Deleted() {
		j.clock.forget(name)
		return
	}
	var c presence
	if err := json.Unmarshal(e.Value, &c); err != nil {
		j.logger.Warn("what another controller says of itself cannot be read", "controller", name, "error", err)
		return
	}
	if c.Since == 0 {
		c.Since = e.Revision
	}
	j.clock.hear(name, c)
}

// beat says that this controller lives.
func (j *member) beat(ctx context.Context) error {
	agreed, wall := j.clock.both()
	if j.clock.strayed() {
		j.since = 0 // comes anew
	}
	c := presence{Instance: j.instance, Since: j.since, Wall: wall.UTC(), Agreed: agreed.UTC()}
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	at, err := store.Put(ctx, j.store, claimsPrefix+j.name, value, j.revision)
	switch {
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
		return j.reclaim(ctx, value)
	case err != nil:
		return err
	}
	j.wrote(at)
	return nil
}

func (j *member) wrote(at store.Revision) {
	j.revision = at
	if j.since == 0 {
		j.since = at
		j.clock.came(at)
	}
}

// reclaim looks who changed the claim: this controller itself, with a write of which it
// never heard, or another one of its name.
func (j *member) reclaim(ctx context.Context, value []byte) error {
	entry, err := j.store.Get(ctx, claimsPrefix+j.name)
	var c presence
	switch {
	case errors.Is(err, store.ErrNotFound):
		entry.Revision = store.Absent // somebody removed it
	case err != nil:
		return err
	case json.Unmarshal(entry.Value, &c) == nil && c.Instance != j.instance:
		return errTaken{j.taken()}
	}
	at, err := store.Put(ctx, j.store, claimsPrefix+j.name, value, entry.Revision)
	if err != nil {
		return err
	}
	j.wrote(at)
	return nil
}

// errTaken ends the process: two of one name would write one audit trail's anchor.
type errTaken struct{ error }

// run beats and listens until ctx ends, and then gives the claim back.
func (j *member) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		j.follow(ctx)
	}()
	defer func() { stop(); <-heard }()
	silent := false
	err := every(ctx, beatEvery, func() error {
		attempt, cancel := context.WithTimeout(ctx, beatEvery)
		defer cancel()
		err := j.beat(attempt)
		if taken := (errTaken{}); errors.As(err, &taken) {
			return err
		}
		switch {
		case err != nil && ctx.Err() == nil && !silent:
			j.logger.Warn("the site does not hear from this controller", "error", err)
		case err == nil && silent:
			j.logger.Info("the site hears from this controller again")
		}
		silent = err != nil
		j.tell()
		if j.clock.leapt() {
			j.moved()
		}
		return nil
	})
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatEvery)
	defer cancel()
	if _, e := store.Delete(last, j.store, claimsPrefix+j.name, j.revision); e != nil {
		j.logger.Debug("leave the site", "error", e) // others notice the silence
	}
	return err
}

// follow hears the others for as long as it takes.
func (j *member) follow(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := j.store.Watch(ctx, claimsPrefix, 0)
		if err == nil {
			for e := range w.Events() {
				if !e.Progress {
					j.hear(e)
				}
			}
			err = w.Err()
		}
		if err != nil && ctx.Err() == nil {
			j.logger.Warn("hear from the other controllers", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(beatEvery):
		}
	}
}

// tell says, once each time, how clocks differ and when they do no more.
func (j *member) tell() {
	switch what, isNew := j.clock.news(); {
	case !isNew:
	case what == "":
		j.logger.Info("the clocks of the controllers agree again")
	default:
		j.logger.Error("the clocks of the controllers disagree: set them right (chronyc makestep)", "clocks", what)
	}
}

// instanceOf reads the mark of a state folder, or makes one.
func instanceOf(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(data)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the mark of the state folder: %w", err)
	}
	mark := make([]byte, 12)
	if _, err := rand.Read(mark); err != nil {
		return "", err
	}
	word := hex.EncodeToString(mark)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("mark the state folder: %w", err)
	}
	if err := writeFile(path, []byte(word+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("mark the state folder: %w", err)
	}
	return word, nil
}
