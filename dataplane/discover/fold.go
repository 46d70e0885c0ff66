// Package discover finds out which workloads stand behind which interfaces of this
// host, from outside: what container runtimes say of containers is joined with what
// the kernel says of links.
//
// Its core is a pure fold. It believes a runtime about names, labels, MACs and
// addresses, and the kernel about which link leads where: a link is a container's
// only if its other end is in the container's network namespace. It never enters
// that namespace. What it cannot tell it does not guess: such an interface stays
// unknown, and what runs without an interface on this host is told as ungoverned.
package discover

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/container"
)

// Source is what is known of one runtime.
type Source struct {
	Socket string
	// Namespace is that of all its workloads; empty: as their labels say.
	Namespace string
	// Owner is the user whom the socket belongs to.
	Owner uint32
	// Listed says that it was read since the start, Live that it can be read now.
	Listed, Live bool
	Inventory    container.Inventory
}

// Sandbox is what the kernel tells of a container's network namespace.
type Sandbox struct {
	Number int32 // host.NoNamespace: nothing of this host leads there
	Owner  uint32
	Links  []host.FarLink
}

// Rules are what the host's administrator decided.
type Rules struct {
	Host string
	// Default is the namespace of containers of which nobody says another.
	Default string
	// Trusted are the labels that containers' owners may choose as they are.
	Trusted []string
}

// Found is what there is.
type Found struct {
	Sightings []bocage.Sighting // by source and name; none of them has stopped
	Bindings  []Binding         // by index
	Networks  []Network         // by bridge
	// Ungoverned says of what runs without an enforcement point what it is and why.
	Ungoverned []string
	// Listed says that every source was read at least once, so that what has no
	// binding is not there.
	Listed bool
}

// Binding says what is behind a link.
type Binding struct {
	Ifindex  uint32
	Instance string
	MAC      string
	Newcomer
}

// Newcomer is what is known of a workload before anybody has vouched for it.
type Newcomer struct {
	Workload  string // namespace/name
	Namespace string
	Labels    map[string]string // all that selectors can mean
}

// Network is a bridge that a runtime joins containers by.
type Network struct {
	Bridge string
	// Coming are the containers on it that have no interface yet; Known says that
	// the runtime tells of them.
	Coming []Newcomer
	Known  bool
}

// fold carries one fold from step to step.
type fold struct {
	rules   Rules
	links   []host.Link
	sandbox func(*container.Container) (Sandbox, error)
	found   Found
	claims  map[uint32]int // by link: the binding that has it
	bridges map[string]*Network
}

// Fold joins runtimes, the first before the others, with the links that exist.
func Fold(rules Rules, sources []Source, links []host.Link, sandbox func(*container.Container) (Sandbox, error)) Found {
	f := &fold{rules: rules, links: links, sandbox: sandbox, claims: map[uint32]int{}, bridges: map[string]*Network{}}
	f.found.Listed = true
	for _, s := range sources {
		f.found.Listed = f.found.Listed && s.Listed
		f.source(s)
	}
	for _, bridge := range f.bridges {
		f.found.Networks = append(f.found.Networks, *bridge)
	}
	slices.SortFunc(f.found.Networks, func(a, b Network) int { return cmp.Compare(a.Bridge, b.Bridge) })
	slices.SortFunc(f.found.Bindings, func(a, b Binding) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	slices.SortStableFunc(f.found.Sightings, func(a, b bocage.Sighting) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.NamespacedName(), b.NamespacedName()))
	})
	slices.Sort(f.found.Ungoverned)
	f.found.Ungoverned = slices.Compact(f.found.Ungoverned)
	return f.found
}

func (f *fold) source(s Source) {
	for _, n := range s.Inventory.Networks {
		if n.Bridge != "" && f.bridges[n.Bridge] == nil {
			f.bridges[n.Bridge] = &Network{Bridge: n.Bridge, Known: s.Live}
		}
	}
	pods := map[string]*container.Pod{}
	for i := range s.Inventory.Pods {
		pods[s.Inventory.Pods[i].Infra] = &s.Inventory.Pods[i]
	}
	images := map[string][]string{} // of those that share another's network
	for i := range s.Inventory.Containers {
		if c := &s.Inventory.Containers[i]; c.Shares() != "" && c.Image != "" {
			images[c.Shares()] = append(images[c.Shares()], c.Image)
		}
	}
	for i := range s.Inventory.Containers {
		c := &s.Inventory.Containers[i]
		if c.Shares() == "" {
			f.container(s, c, pods[c.ID], images[c.ID])
		}
	}
	if left := s.Inventory.Left; left > 0 {
		f.ungoverned("%d containers of %s: what the runtime says of them cannot be read", left, s.Socket)
	}
}

func (f *fold) ungoverned(format string, args ...any) {
	f.found.Ungoverned = append(f.found.Ungoverned, fmt.Sprintf(format, args...))
}

// container finds the interfaces of one that has a network of its own.
func (f *fold) container(s Source, c *container.Container, pod *container.Pod, images []string) {
	title := c.Name
	if pod != nil {
		title = pod.Name
	}
	own := ownLabels(c, pod)
	sighting := bocage.Sighting{Source: s.Socket, Namespace: namespaceOf(s.Namespace, f.rules.Default, own),
		Name: nameOf(title, f.rules.Host), Labels: labelsOf(own, f.rules.Trusted), Image: c.Image, Digest: c.ImageID}
	if pod != nil && len(images) > 0 {
		slices.Sort(images)
		sighting.Image, sighting.Digest = strings.Join(slices.Compact(images), ","), ""
	}
	newcomer := newcomerOf(&sighting, f.rules.Host)
	switch c.Mode {
	case "none":
		return
	case "host":
		if c.Running {
			f.ungoverned("%s uses the host's own interfaces", newcomer.Workload)
		}
		return
	}
	told := len(f.found.Ungoverned)
	joined := f.join(s, c, newcomer)
	if len(joined) == 0 {
		if told == len(f.found.Ungoverned) {
			f.comes(s, c, newcomer)
		}
		return
	}
	sighting.Spec = bocage.WorkloadSpec{Host: f.rules.Host, Instance: c.ID}
	for i, j := range joined {
		link := bocage.WorkloadInterface{Interface: j.link.Name, MAC: j.attachment.MAC, Addresses: j.attachment.Addresses}
		sighting.Spec.Addresses = append(sighting.Spec.Addresses, j.attachment.Addresses...)
		if i == 0 {
			sighting.Spec.Interface, sighting.Spec.MAC = link.Interface, link.MAC
		} else {
			sighting.Spec.MoreInterfaces = append(sighting.Spec.MoreInterfaces, link)
		}
	}
	f.found.Sightings = append(f.found.Sightings, sighting)
}

// newcomerOf is how selectors see a sighting.
func newcomerOf(s *bocage.Sighting, hostName string) Newcomer {
	w := bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: s.Labels},
		Spec: bocage.WorkloadSpec{Host: hostName}, Status: bocage.WorkloadStatus{Assurance: bocage.AssuranceOfSighted}}
	return Newcomer{Workload: s.NamespacedName(), Namespace: s.Namespace, Labels: w.AllLabels()}
}

// comes notes a container without an interface yet on the networks that it will be
// on. One that runs without one is ungoverned.
func (f *fold) comes(s Source, c *container.Container, newcomer Newcomer) {
	networks := map[string]container.Network{}
	for _, n := range s.Inventory.Networks {
		networks[n.Name] = n
	}
	bridged := false
	for _, a := range c.Networks {
		n := networks[a.Network]
		if b := f.bridges[n.Bridge]; n.Bridge != "" && b != nil {
			b.Coming = append(b.Coming, newcomer)
			bridged = true
		} else if c.Running && (n.Driver == "macvlan" || n.Driver == "ipvlan") {
			f.ungoverned("%s is on the %s network %s: it has no interface of its own on this host", newcomer.Workload, n.Driver, a.Network)
			return
		}
	}
	if c.Running && !bridged {
		f.ungoverned("%s is connected by %s: it has no interface on this host", newcomer.Workload, cmp.Or(c.Mode, "its runtime alone"))
	}
}

// joint is a link of this host with the attachment that it is the end of.
type joint struct {
	link       host.Link
	attachment container.Attachment
}

// join finds the links of a container and says which of its networks each is for.
func (f *fold) join(s Source, c *container.Container, newcomer Newcomer) []joint {
	if c.Sandbox == "" && c.Pid == 0 {
		return nil
	}
	box, err := f.sandbox(c)
	if err != nil {
		return nil // it has ended, or has not begun
	}
	// A user's own runtime speaks for that user's namespaces alone.
	if s.Owner != 0 && box.Owner != s.Owner {
		f.ungoverned("%s: its runtime names a network namespace that is not its user's", newcomer.Workload)
		return nil
	}
	var ends []end
	for _, far := range box.Links {
		switch far.Kind {
		case "veth":
			i := slices.IndexFunc(f.links, func(l host.Link) bool {
				return l.Kind == "veth" && l.Index == far.Parent && l.Peer == far.Index && l.PeerNamespace == box.Number
			})
			if i >= 0 {
				ends = append(ends, end{f.links[i], far})
			}
		case "macvlan", "ipvlan", "macvtap", "ipvtap":
			f.ungoverned("%s has a %s: it sends past every interface of its own on this host", newcomer.Workload, far.Kind)
		}
	}
	joined := f.match(s, c.Networks, ends)
	out := joined[:0]
	for _, j := range joined {
		if at, taken := f.claims[j.link.Index]; taken {
			f.ungoverned("%s: %s is %s's already", newcomer.Workload, j.link.Name, f.found.Bindings[at].Workload)
			continue
		}
		f.claims[j.link.Index] = len(f.found.Bindings)
		f.found.Bindings = append(f.found.Bindings, Binding{Ifindex: j.link.Index, Instance: c.ID, MAC: j.attachment.MAC, Newcomer: newcomer})
		out = append(out, j)
	}
	return out
}

// end is both ends of one veth.
type end struct {
	link host.Link
	far  host.FarLink
}

// match tells which end is on which network: by the MAC that the runtime gave it,
// else by the bridge that it is on, else if there is no other.
func (f *fold) match(s Source, attachments []container.Attachment, ends []end) []joint {
	bridges := map[string]string{}
	for _, n := range s.Inventory.Networks {
		bridges[n.Name] = n.Bridge
	}
	names := map[uint32]string{}
	for _, l := range f.links {
		names[l.Index] = l.Name
	}
	attachments = slices.DeleteFunc(slices.Clone(attachments), func(a container.Attachment) bool { return !connected(a) })
	var joined []joint
	take := func(fits func(container.Attachment, end) bool) {
		attachments = slices.DeleteFunc(attachments, func(a container.Attachment) bool {
			i := slices.IndexFunc(ends, func(e end) bool { return fits(a, e) })
			if i < 0 {
				return false
			}
			joined = append(joined, joint{ends[i].link, a})
			ends = slices.Delete(ends, i, i+1)
			return true
		})
	}
	onBridge := func(a container.Attachment, e end) bool {
		return e.link.Master != 0 && bridges[a.Network] != "" && bridges[a.Network] == names[e.link.Master]
	}
	take(func(a container.Attachment, e end) bool { return a.MAC != "" && a.MAC == e.far.MAC.String() })
	take(onBridge)
	take(func(container.Attachment, end) bool { return len(attachments) == 1 && len(ends) == 1 })
	slices.SortFunc(joined, func(a, b joint) int { return cmp.Compare(a.attachment.Network, b.attachment.Network) })
	return joined
}

// connected says whether an attachment has an address, so that there is something
// to vouch for.
func connected(a container.Attachment) bool {
	return slices.ContainsFunc(a.Addresses, netip.Addr.IsValid)
}
