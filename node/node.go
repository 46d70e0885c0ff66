// Package node makes one process out of the rooms: it reads the configuration,
// constructs the engines and the functions in order, in plain Go, carries words
// between agents and controllers, and takes everything down again.
//
// It promises that an agent speaks to controllers over its one connection only,
// also when both live in one process, so that a split into several hosts is a
// matter of addresses. It decides nothing about traffic or policy.
package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"bocage.dev/bocage/api"
)

// Config says what a process is and where its things are. The zero value with
// Complete makes a controller and an agent for this machine.
type Config struct {
	Controller, Agent bool
	// Host is the agent's name, and the controller's; the machine's own by default.
	Host        string
	TrustDomain string
	// StateDir keeps what must survive: keys, state, events, history.
	StateDir string
	// RunDir keeps what must not: sockets, process ids, the engine's files.
	RunDir string
	// BPFFS is a folder in a bpffs below which the agent pins its state; it mounts
	// one there if there is none, which takes root.
	BPFFS string
	// APIListen is the address of the HTTPS face; empty for the socket only.
	APIListen string
	// TransportListen is where the controller takes agents' connections.
	TransportListen string
	// Controllers are the transport addresses that the agent connects to.
	Controllers []string
	// Etcd is what the controller shares with others; without it has a store of its own.
	Etcd Etcd
	// JoinToken admits a new agent once; not needed beside a controller.
	JoinToken string
	// Uplinks names interfaces by which the host itself reaches others and that
	// may be enforced on all the same; without a name they are left alone.
	Uplinks []string
	// WatchBridges names bridges whose veths and taps are enforcement points from the
	// moment they join, before anybody vouches for them. Those of container runtimes
	// that are read need no name.
	WatchBridges []string
	// RuntimeSockets are those of container runtimes, as PATH or PATH=NAMESPACE;
	// none: dockerd's and podman's usual ones, where they exist.
	RuntimeSockets []string
	// NoDiscovery reads no container runtime.
	NoDiscovery bool
	// WorkloadNamespace is that of containers of which nobody says another.
	WorkloadNamespace string
	// TrustLabels are the labels that containers' owners may choose as they are.
	TrustLabels []string
	// AcceptRisk allows to name the uplink that carries the administrator's session.
	AcceptRisk bool
	// DirectDelivery hands packets between workloads of this host past the host's
	// own stack (see dataplane.Config).
	DirectDelivery bool
	// TableEntries are sizes of the dataplane's tables, by name; see
	// [dataplane.Config.Resize].
	TableEntries map[string]int
	// NoInspection and NoDeception leave the engine or the decoys out of this agent.
	NoInspection, NoDeception bool
	// OIDC accepts a provider's tokens at the API, if it names one.
	OIDC api.OIDC
	// TwoPerson lets guardrails take effect once a second person agrees.
	TwoPerson bool
	// Quotas bound the objects of a kind, by its plural, in each namespace.
	Quotas map[string]int
	// QuarantineFor is how long recognition's own quarantine lasts.
	QuarantineFor time.Duration
	Version       string
	Logger        *slog.Logger

	clock func() (wall time.Time, even time.Duration) // nil: this machine's
}

// Default places of the one installation that a machine usually has.
const (
	DefaultStateDir        = "/var/lib/bocage"
	DefaultRunDir          = "/run/bocage"
	DefaultBPFFS           = "/sys/fs/bpf/bocage"
	unitBPFFS              = "/run/bocage/bpf" // that of the agent's systemd unit
	DefaultTrustDomain     = "bocage.internal"
	DefaultAPIListen       = "127.0.0.1:8443"
	DefaultTransportListen = "127.0.0.1:4222"
)

var hostName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Complete fills in what was left out and returns every fault at once.
func (c Config) Complete() (Config, error) {
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("name of this machine: %w: name it with --host", err)
		}
		c.Host, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.StateDir, DefaultStateDir)
	set(&c.RunDir, DefaultRunDir)
	set(&c.BPFFS, DefaultBPFFS)
	set(&c.TrustDomain, DefaultTrustDomain)
	if c.Controller {
		set(&c.TransportListen, DefaultTransportListen)
	}
	if c.QuarantineFor == 0 {
		c.QuarantineFor = 15 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.clock == nil {
		c.clock = machineClock()
	}
	var faults []error
	if !c.Controller && !c.Agent {
		faults = append(faults, errors.New("a node is a controller, an agent or both"))
	}
	if !hostName.MatchString(c.Host) {
		faults = append(faults, fmt.Errorf("--host %q is not a lower-case DNS label", c.Host))
	}
	for name, dir := range map[string]string{"--state-dir": c.StateDir, "--run-dir": c.RunDir, "--bpffs": c.BPFFS} {
		if !filepath.IsAbs(dir) {
			faults = append(faults, fmt.Errorf("%s %q is not an absolute path", name, dir))
		}
	}
	if _, err := c.dataplane(); err != nil {
		faults = append(faults, fmt.Errorf("--table-entries: %w", err))
	}
	listeners := map[string]string{"--api-listen": c.APIListen, "--transport-listen": c.TransportListen}
	for name, address := range listeners {
		if address == "" {
			continue
		}
		if _, err := netip.ParseAddrPort(address); err != nil {
			faults = append(faults, fmt.Errorf("%s %q is not an address and a port, such as 10.0.0.1:4222", name, address))
		}
	}
	if _, err := c.discovery(); err != nil {
		faults = append(faults, err)
	}
	if err := c.Etcd.validate(); err != nil {
		faults = append(faults, err)
	}
	if c.Agent && !c.Controller && len(c.Controllers) == 0 {
		faults = append(faults, errors.New("an agent needs --controllers, the transport address of at least one controller"))
	}
	return c, errors.Join(faults...)
}

// Socket is the local face of the API.
func (c Config) Socket() string { return filepath.Join(c.RunDir, "api.sock") }

// installation names this installation's things in the kernel: the host, and for
// a run folder of its own a word for that, so that several can be on one machine.
func (c Config) installation() string {
	if c.RunDir == DefaultRunDir {
		return c.Host
	}
	sum := sha256.Sum256([]byte(c.RunDir))
	return c.Host + "-" + hex.EncodeToString(sum[:3])
}

// PinDir is where the agent's links and maps are pinned.
func (c Config) PinDir() string { return filepath.Join(c.BPFFS, c.installation()) }

func (c Config) controllerDir(name string) string {
	return filepath.Join(c.StateDir, "controller", name)
}

func (c Config) agentDir(name string) string { return filepath.Join(c.StateDir, "agent", name) }

// Namespaces of the inspection engine and the decoys.
func (c Config) inspectionNamespace() string { return "bocage-" + c.installation() + "-inspect" }
func (c Config) decoyNamespace() string      { return "bocage-" + c.installation() + "-decoys" }
