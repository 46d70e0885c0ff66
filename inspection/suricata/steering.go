package suricata

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"bocage.dev/bocage/host"
)

// ErrSteering means that the steering links are gone: somebody deleted them or
// the namespace. Start makes them anew, with other interface numbers.
var ErrSteering = errors.New("the steering links of inspection are gone")

// Frames carry the profile as a VLAN tag, and on wires up to two of their own.
const tagBytes = 3 * 4

// linkNames are the host's ends of the steering links: the same at every start,
// since programs are pinned to them.
func linkNames(hostName string) (outside, inside string) {
	sum := sha256.Sum256([]byte(hostName))
	mark := hex.EncodeToString(sum[:4])
	return "bocout-" + mark, "bocin-" + mark
}

// steer makes what is missing of the namespace and the two pairs of links, and
// leaves what is right as it is. It returns the indexes of the host's ends.
func steer(cfg Config) (outside, inside uint32, err error) {
	if err := host.CreateNamespace(cfg.Namespace); err != nil && !errors.Is(err, fs.ErrExist) {
		return 0, 0, err
	}
	// No addresses, not even those that IPv6 gives itself: what comes out of the
	// engine went in at the other side.
	for _, scope := range []string{"all", "default"} {
		if err := withoutIPv6(cfg.Namespace, scope); err != nil {
			return 0, 0, err
		}
	}
	outsideName, insideName := linkNames(cfg.Host)
	if outside, err = steeringLink(cfg, outsideName, outsideLink); err != nil {
		return 0, 0, err
	}
	if inside, err = steeringLink(cfg, insideName, insideLink); err != nil {
		return 0, 0, err
	}
	return outside, inside, nil
}

// steeringLink makes one pair and returns the index of the host's end.
func steeringLink(cfg Config, name, inner string) (uint32, error) {
	mtu := cfg.mtu() + tagBytes
	link, ok := paired(cfg.Namespace, name, inner, mtu)
	if !ok {
		if err := errors.Join(host.DeleteLink("", name), host.DeleteLink(cfg.Namespace, inner)); err != nil {
			return 0, err
		}
		err := host.CreateVeth(host.Veth{Name: name, Peer: inner, PeerNamespace: cfg.Namespace, MTU: mtu})
		if err != nil {
			return 0, err
		}
		if link, err = host.LinkNamed("", name); err != nil {
			return 0, err
		}
	}
	if err := withoutIPv6("", name); err != nil {
		return 0, err
	}
	// The kernel cuts super-frames and fills in checksums where a frame is
	// redirected to a link without offloads; the engine could do neither.
	if err := errors.Join(host.DisableOffloads("", name), host.DisableOffloads(cfg.Namespace, inner)); err != nil {
		return 0, err
	}
	return link.Index, nil
}

// paired says whether a pair stands as it should.
func paired(namespace, name, inner string, mtu int) (host.Link, bool) {
	outer, err := host.LinkNamed("", name)
	if err != nil {
		return host.Link{}, false
	}
	end, err := host.LinkNamed(namespace, inner)
	ok := err == nil && outer.Kind == "veth" && end.Kind == "veth" && outer.Peer == end.Index && end.Peer == outer.Index &&
		outer.Up && end.Up && outer.MTU == mtu && end.MTU == mtu
	return outer, ok
}

// withoutIPv6 keeps a link from speaking for itself; a kernel without IPv6 does anyway.
func withoutIPv6(namespace, link string) error {
	err := host.Sysctl(namespace, "net/ipv6/conf/"+link+"/disable_ipv6", "1")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep IPv6 off the steering links: %w", err)
	}
	return nil
}

// unsteer takes links and namespace down, and every process in it.
func unsteer(cfg Config) error {
	outside, inside := linkNames(cfg.Host)
	return errors.Join(host.Kill(cfg.Namespace), host.DeleteLink("", outside), host.DeleteLink("", inside),
		host.DeleteNamespace(cfg.Namespace))
}
