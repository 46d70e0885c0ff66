package container

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// isID says whether a text can be the ID of a container, a network or a pod, and so
// an element of a path.
func isID(s string) bool {
	if len(s) < 12 || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// plain says whether a text can be shown and kept: valid, short, nothing that
// moves a cursor.
func plain(s string) bool {
	if len(s) > mostText || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// labelsOf keeps those that can be shown and kept.
func labelsOf(labels map[string]string) map[string]string {
	out := make(map[string]string, min(len(labels), mostLabels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if len(out) == mostLabels {
			break
		}
		if key != "" && plain(key) && plain(labels[key]) {
			out[key] = labels[key]
		}
	}
	return out
}

// decode reads one JSON value and nothing after it.
func decode(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("more than one value")
	}
	return nil
}

// parseVersion tells the product.
func parseVersion(data []byte) (product string, err error) {
	var version struct {
		Components []struct{ Name string }
	}
	if err := decode(data, &version); err != nil {
		return "", fmt.Errorf("version: %w", err)
	}
	for _, c := range version.Components {
		if strings.HasPrefix(c.Name, "Podman") {
			return podman, nil
		}
	}
	return docker, nil
}

// Products.
const (
	docker = "docker"
	podman = "podman"
)

// parseList reads the IDs of a list of containers.
func parseList(data []byte) (ids []string, left int, err error) {
	var list []struct{ ID string }
	if err := decode(data, &list); err != nil {
		return nil, 0, fmt.Errorf("list of containers: %w", err)
	}
	for _, c := range list {
		if !isID(c.ID) || len(ids) == mostContainers {
			left++
			continue
		}
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), left, nil
}

// errEnded says that a container has ended: it has no network any more.
var errEnded = errors.New("it has ended")

// parseContainer reads what inspecting one container answers.
func parseContainer(data []byte) (Container, error) {
	var o struct {
		ID, Name, Image string
		Pod             string // podman's
		State           struct {
			Status  string
			Running bool
			Pid     int
		}
		Config struct {
			Image  string
			Labels map[string]string
		}
		HostConfig      struct{ NetworkMode string }
		NetworkSettings struct {
			SandboxKey string
			Networks   map[string]*struct {
				NetworkID, MacAddress        string
				IPAddress, GlobalIPv6Address string
			}
		}
	}
	if err := decode(data, &o); err != nil {
		return Container{}, fmt.Errorf("container: %w", err)
	}
	if !isID(o.ID) {
		return Container{}, fmt.Errorf("container: %.80q is no ID", o.ID)
	}
	switch o.State.Status {
	case "exited", "dead", "removing", "stopped":
		return Container{ID: o.ID}, errEnded
	}
	c := Container{ID: o.ID, Name: strings.TrimPrefix(o.Name, "/"), Image: o.Config.Image, ImageID: o.Image, Pod: o.Pod,
		Running: o.State.Running, Pid: max(o.State.Pid, 0), Sandbox: o.NetworkSettings.SandboxKey, Mode: o.HostConfig.NetworkMode,
		Labels: labelsOf(o.Config.Labels)}
	for what, text := range map[string]string{"name": c.Name, "image": c.Image, "image ID": c.ImageID, "sandbox": c.Sandbox, "network mode": c.Mode, "pod": c.Pod} {
		if !plain(text) {
			return Container{}, fmt.Errorf("container %.12s: its %s is no text", c.ID, what)
		}
	}
	if c.Sandbox != "" && !strings.HasPrefix(c.Sandbox, "/") {
		c.Sandbox = ""
	}
	for _, name := range slices.Sorted(maps.Keys(o.NetworkSettings.Networks)) {
		n := o.NetworkSettings.Networks[name]
		if n == nil || !plain(name) || !plain(n.NetworkID) {
			continue
		}
		if len(c.Networks) == mostAttached {
			return Container{}, fmt.Errorf("container %.12s: it is on more than %d networks", c.ID, mostAttached)
		}
		a := Attachment{Network: name, NetworkID: n.NetworkID}
		if mac, err := net.ParseMAC(n.MacAddress); err == nil && len(mac) == 6 {
			a.MAC = mac.String()
		}
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if address, ok := unicast(text); ok {
				a.Addresses = append(a.Addresses, address)
			}
		}
		c.Networks = append(c.Networks, a)
	}
	return c, nil
}

// unicast reads an address that a workload can have.
func unicast(text string) (netip.Addr, bool) {
	address, err := netip.ParseAddr(text)
	if err != nil || address.Zone() != "" {
		return netip.Addr{}, false
	}
	address = address.Unmap()
	if address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() {
		return netip.Addr{}, false
	}
	return address, true
}

// parseNetworks reads dockerd's networks.
func parseNetworks(data []byte) ([]Network, error) {
	var list []struct {
		ID, Name, Driver string
		Options, Labels  map[string]string
	}
	if err := decode(data, &list); err != nil {
		return nil, fmt.Errorf("list of networks: %w", err)
	}
	var networks []Network
	for _, o := range list {
		n := Network{ID: o.ID, Name: o.Name, Driver: o.Driver, Labels: labelsOf(o.Labels)}
		if n.Driver == "bridge" {
			if n.Bridge = o.Options["com.docker.network.bridge.name"]; n.Bridge == "" && isID(n.ID) {
				n.Bridge = "br-" + n.ID[:12]
			}
		}
		networks = addNetwork(networks, n)
	}
	return sortNetworks(networks), nil
}

// parsePodmanNetworks reads podman's, which say more in its own form.
func parsePodmanNetworks(data []byte) ([]Network, error) {
	var list []struct {
		ID        string `json:"id"`
		Name      string `json:"name"`
		Driver    string `json:"driver"`
		Interface string `json:"network_interface"`
		Labels    map[string]string
	}
	if err := decode(data, &list); err != nil {
		return nil, fmt.Errorf("list of networks: %w", err)
	}
	var networks []Network
	for _, o := range list {
		n := Network{ID: o.ID, Name: o.Name, Driver: o.Driver, Labels: labelsOf(o.Labels)}
		if n.Driver == "bridge" {
			n.Bridge = o.Interface
		}
		networks = addNetwork(networks, n)
	}
	return sortNetworks(networks), nil
}

func addNetwork(networks []Network, n Network) []Network {
	if n.Name == "" || !plain(n.Name) || !plain(n.ID) || !plain(n.Driver) || len(networks) == mostNetworks {
		return networks
	}
	if !isLinkName(n.Bridge) {
		n.Bridge = ""
	}
	return append(networks, n)
}

// isLinkName says whether Linux takes a text as the name of an interface.
func isLinkName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && plain(s) && !strings.ContainsAny(s, "/: \t")
}

func sortNetworks(networks []Network) []Network {
	slices.SortStableFunc(networks, func(a, b Network) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return networks
}

// parsePods reads podman's pods.
func parsePods(data []byte) ([]Pod, error) {
	var list []struct {
		ID, Name string
		InfraID  string `json:"InfraId"`
		Labels   map[string]string
	}
	if err := decode(data, &list); err != nil {
		return nil, fmt.Errorf("list of pods: %w", err)
	}
	var pods []Pod
	for _, o := range list {
		if isID(o.ID) && plain(o.Name) && (o.InfraID == "" || isID(o.InfraID)) && len(pods) < mostPods {
			pods = append(pods, Pod{ID: o.ID, Name: o.Name, Infra: o.InfraID, Labels: labelsOf(o.Labels)})
		}
	}
	slices.SortFunc(pods, func(a, b Pod) int { return cmp.Compare(a.ID, b.ID) })
	return pods, nil
}

// event is what happened: only that, since what is true now is asked for.
type event struct {
	container string // that it concerns
	networks  bool   // networks came or went
	pods      bool
}

// parseEvent reads one line of the stream of events.
func parseEvent(data []byte) (event, error) {
	var o struct {
		Type, Action string
		Actor        struct {
			ID         string
			Attributes struct {
				Container string `json:"container"`
			}
		}
	}
	if err := decode(data, &o); err != nil {
		return event{}, fmt.Errorf("event: %w", err)
	}
	var e event
	switch o.Type {
	case "container":
		e.container = o.Actor.ID
	case "network":
		// dockerd names the network and tells the container beside, podman names the
		// container of a connection.
		e.networks = o.Action == "create" || o.Action == "destroy" || o.Action == "remove" || o.Action == "update"
		if e.container = o.Actor.Attributes.Container; e.container == "" && !e.networks {
			e.container = o.Actor.ID
		}
	case "pod":
		e.pods = true
	}
	// Exec and the like say nothing of who is connected to what.
	if o.Type == "container" && (strings.HasPrefix(o.Action, "exec_") || strings.HasPrefix(o.Action, "health_status") || o.Action == "top" || o.Action == "resize") {
		e.container = ""
	}
	if e.container != "" && !isID(e.container) {
		return event{}, fmt.Errorf("event: %.80q is no ID", e.container)
	}
	return e, nil
}
