// Package gather makes the compiler's input of declarations in files, without a controller:
// our own kinds, and Namespaces, Pods, Nodes and network policies as Kubernetes writes them.
//
// It promises to report all faults of all files at once, each with its file and line, and
// to write a note about what it leaves out or fills in: foreign kinds, addresses of Pods
// that have none yet, defaults. The same files in any order give the same input.
//
// It never decides about flows, and never writes.
package gather

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// Values of Options.Default.
const (
	DefaultAuto       = "auto"
	DefaultKubernetes = "kubernetes"
	DefaultDeny       = "deny"
	DefaultDeclared   = "declared"
)

// MaxBytes is the largest file that is read: a cluster's Pods in one piece.
const MaxBytes = 256 << 20

// Options say how files are read. The zero value is the usual way.
type Options struct {
	// Default says what happens to flows about which nothing is declared:
	//   - "kubernetes" accepts them between any workloads.
	//   - "deny" accepts none, not even between Pods.
	//   - "declared" accepts them between Pods only, as a controller does.
	//   - "auto" (or empty) is like "declared", but if there are Kubernetes' policies and
	//     none of Bocage's own, Workloads count as Pods.
	Default string
	// Strict makes foreign kinds faults.
	Strict bool
}

// Gathered is the content of the files.
type Gathered struct {
	// Input has everything but Now.
	Input compile.Input
	Tests []*bocage.PolicyTest
	// Notes say, for people, what was left out or filled in.
	Notes []string
	// Names are names of ends besides workloads and hosts, with their addresses: Pods on
	// their node's network.
	Names map[string][]netip.Addr
	// Unusable are names and addresses that cannot be an end of a flow, with the reason.
	Unusable map[string]string

	documents map[objectKey]manifest.Document
}

type objectKey struct{ kind, namespace, name string }

// Gatherer collects files.
type Gatherer struct {
	options Options
	reader  manifest.Reader
	faults  bocage.Faults
	out     Gathered
	pods    []kubernetes.Pod
	// templates are those of Deployments and the like, whose Pods may be in the files or
	// not.
	templates []template
	services  []service
	sources   map[objectKey]string // of workloads and hosts, by whatever kind declares them
	foreign   map[string][]string  // kinds that are not read, with the places of their objects
	ownPolicy bool                 // a policy of Bocage's own was declared
}

// New prepares to collect.
func New(options Options) *Gatherer {
	g := &Gatherer{options: options, sources: map[objectKey]string{}, foreign: map[string][]string{},
		out: Gathered{Names: map[string][]netip.Addr{}, Unusable: map[string]string{}, documents: map[objectKey]manifest.Document{}}}
	g.reader = manifest.Reader{Namespace: "default", Foreign: g.foreignObject, MaxBytes: MaxBytes, Seen: manifest.NewSeen(),
		Note: func(note bocage.Fault) { g.note("%s", note) }}
	return g
}

// Path adds a file or a folder.
func (g *Gatherer) Path(path string) {
	g.faults = append(g.faults, g.reader.EachPath(path, g.document)...)
}

// Read adds the content of a stream; name is for messages.
func (g *Gatherer) Read(name string, data []byte) {
	g.faults = append(g.faults, g.reader.Each(name, data, g.document)...)
}

// document adds one object of a known kind.
func (g *Gatherer) document(d manifest.Document) {
	in := &g.out.Input
	counts := bocage.AsAgreed(d.Resource) // in an export of a controller, unapproved changes do not count
	if counts == nil {
		g.note("%s %s is left out: it waits for a second person, and nothing was in force before", d.Resource.Type().Kind, d.Resource.Meta().Name)
		return
	}
	switch o := counts.(type) {
	case *bocage.Application:
		in.Applications, g.ownPolicy = append(in.Applications, o), true
	case *bocage.Guardrail:
		in.Guardrails, g.ownPolicy = append(in.Guardrails, o), true
	case *bocage.Exception:
		in.Exceptions, g.ownPolicy = append(in.Exceptions, o), true
	case *bocage.Response:
		in.Responses, g.ownPolicy = append(in.Responses, o), true
	case *bocage.Scope:
		in.Scopes, g.ownPolicy = append(in.Scopes, o), true
	case *bocage.InspectionProfile:
		in.Profiles, g.ownPolicy = append(in.Profiles, o), true
	case *bocage.Decoy:
		in.Decoys, g.ownPolicy = append(in.Decoys, o), true
	case *bocage.Quarantine:
		in.Quarantines = append(in.Quarantines, o)
	case *bocage.ThreatCondition:
		in.ThreatConditions = append(in.ThreatConditions, o)
	case *bocage.AddressGroup:
		in.AddressGroups = append(in.AddressGroups, o)
	case *bocage.Zone:
		in.Zones = append(in.Zones, o)
	case *bocage.Namespace:
		in.Namespaces = append(in.Namespaces, o)
		return
	case *bocage.NetworkPolicy:
		in.NetworkPolicies = append(in.NetworkPolicies, o)
	case *bocage.ClusterNetworkPolicy:
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, o)
	case *bocage.Workload:
		if faults := g.claim("Workload", &o.ObjectMeta, d.Source); len(faults) > 0 {
			g.faults = append(g.faults, faults...)
		} else {
			in.Workloads = append(in.Workloads, o)
		}
		return
	case *bocage.Host:
		if faults := g.claim("Host", &o.ObjectMeta, d.Source); len(faults) > 0 {
			g.faults = append(g.faults, faults...)
		} else {
			in.Hosts = append(in.Hosts, o)
		}
		return
	case *bocage.PolicyTest:
		g.out.Tests = append(g.out.Tests, o)
	default:
		return // Generations, Rollouts and the like do not decide about flows
	}
	meta := d.Resource.Meta()
	d.JSON = nil
	g.out.documents[objectKey{d.Resource.Type().Kind, meta.Namespace, meta.Name}] = d
}

// claim notes that an object has a name. A Pod and a Workload, or a Node and a Host, cannot
// have the same name.
func (g *Gatherer) claim(kind string, meta *bocage.ObjectMeta, source string) bocage.Faults {
	k := objectKey{kind, meta.Namespace, meta.Name}
	if other, taken := g.sources[k]; taken {
		return bocage.Faults{{Field: "metadata.name", Source: source,
			Message: fmt.Sprintf("%s is the name of what is declared at %s already", meta.NamespacedName(), other)}}
	}
	g.sources[k] = source
	return nil
}

// foreignObject adds one object of a kind that is not Bocage's.
func (g *Gatherer) foreignObject(tree *manifest.Tree) bocage.Faults {
	version, _ := tree.Text("apiVersion")
	kind, _ := tree.Text("kind")
	source := tree.Source("")
	switch {
	case version == "v1" && kind == "Pod":
		pod, faults := kubernetes.ReadPod(tree.JSON())
		if len(faults) == 0 {
			faults = nameFaults(pod.Workload)
		}
		if len(faults) == 0 {
			faults = g.claim("Workload", &pod.ObjectMeta, source)
		}
		if len(faults) == 0 {
			pod.Annotations = map[string]string{bocage.SourceAnnotation: source}
			g.pods = append(g.pods, pod)
		}
		return faults
	case version == "v1" && kind == "Node":
		host, faults := kubernetes.ReadNode(tree.JSON())
		if len(faults) == 0 {
			faults = host.Validate()
		}
		if len(faults) == 0 {
			faults = g.claim("Host", &host.ObjectMeta, source)
		}
		if len(faults) == 0 {
			host.Annotations = map[string]string{bocage.SourceAnnotation: source}
			g.out.Input.Hosts = append(g.out.Input.Hosts, host)
		}
		return faults
	case kubernetes.IsController(version, kind):
		read, faults := kubernetes.ReadTemplate(tree.JSON())
		if len(faults) == 0 {
			faults = nameFaults(read.Workload)
		}
		if len(faults) == 0 {
			g.templates = append(g.templates, template{read, source})
		}
		return faults
	case g.options.Strict:
		var faults bocage.Faults
		faults.Add("kind", "%s (%s) is not read here: remove it, or leave out --strict", kind, version)
		return faults
	}
	if version == "v1" && kind == "Service" {
		g.service(tree)
	}
	g.foreign[kind] = append(g.foreign[kind], source)
	return nil
}

// nameFaults checks a Pod's name, namespace and labels. The other rules for Workloads do not
// apply to Pods.
func nameFaults(w *bocage.Workload) bocage.Faults {
	var faults bocage.Faults
	for _, f := range w.Validate() {
		if strings.HasPrefix(f.Field, "metadata.") {
			faults = append(faults, f)
		}
	}
	return faults
}

// Done returns what was collected, or every fault.
func (g *Gatherer) Done() (*Gathered, bocage.Faults) {
	switch g.options.Default {
	case "", DefaultAuto, DefaultKubernetes, DefaultDeny, DefaultDeclared:
	default:
		g.faults.Add("", "default %q is none of %s, %s, %s and %s", g.options.Default, DefaultAuto, DefaultKubernetes, DefaultDeny, DefaultDeclared)
	}
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	g.noteForeign()
	g.addTemplatePods()
	g.place()
	g.assignIdentities()
	g.resolveServices()
	g.defaults()
	g.noteExceptions()
	return &g.out, nil
}

func (g *Gatherer) note(format string, args ...any) {
	g.out.Notes = append(g.out.Notes, fmt.Sprintf(format, args...))
}

// noteForeign adds notes about the kinds that were left out.
func (g *Gatherer) noteForeign() {
	kinds := make([]string, 0, len(g.foreign))
	for kind := range g.foreign {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		sources := g.foreign[kind]
		why := "it is none of the kinds that decide about flows here"
		switch {
		case kind == "Service":
			why = "policies are about the workloads behind a Service: name those"
		case decidesElsewhere(kind):
			why = "WHAT IT DECIDES IS NOT SIMULATED, for its kind is not known here"
		}
		g.note("%d %s left out (%s): %s", len(sources), kind, sources[0], why)
	}
}

// decidesElsewhere reports whether a foreign kind is, by its name, a network policy of
// another product.
func decidesElsewhere(kind string) bool {
	return strings.Contains(strings.ToLower(kind), "polic") || kind == "EgressFirewall" || kind == "ServiceIntentions"
}

// noteExceptions adds notes about the exceptions that need an approval. They count as
// approved, since files do not contain approvals.
func (g *Gatherer) noteExceptions() {
	approvers := map[string][]string{}
	for _, r := range g.out.Input.Guardrails {
		approvers[r.Name] = r.Spec.Exceptions.Approvers
	}
	for _, e := range g.out.Input.Exceptions {
		if who := approvers[e.Spec.Guardrail]; len(who) > 0 && e.Status.Approval == nil {
			g.note("Exception %s counts as approved: in force it waits for %s", e.Name, strings.Join(who, " or "))
		}
	}
}

// defaults applies Options.Default: it decides which workloads count as Pods.
func (g *Gatherer) defaults() {
	in := &g.out.Input
	orchestrator, only := "", ""
	switch g.options.Default {
	case DefaultDeclared:
		return
	case DefaultKubernetes:
		orchestrator = bocage.OrchestratorKubernetes
	case DefaultDeny:
		only = bocage.OrchestratorKubernetes // Pods become workloads like others
	default:
		if g.ownPolicy || len(in.NetworkPolicies)+len(in.ClusterNetworkPolicies) == 0 ||
			!slices.ContainsFunc(in.Workloads, func(w *bocage.Workload) bool { return w.Spec.Orchestrator == "" }) {
			return
		}
		orchestrator = bocage.OrchestratorKubernetes
		g.note("there are Kubernetes' policies and none of Bocage's: Workloads count as Pods, whose flows are accepted unless a policy says otherwise (--default deny to have them refused)")
	}
	for i, w := range in.Workloads {
		if w.Spec.Orchestrator == only && w.Spec.Orchestrator != orchestrator {
			copied := *w
			copied.Spec.Orchestrator = orchestrator
			in.Workloads[i] = &copied
		}
	}
}

// assignIdentities gives unused identities to workloads that have none, in the order of
// their names.
func (g *Gatherer) assignIdentities() {
	workloads := g.out.Input.Workloads
	slices.SortFunc(workloads, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	next := bocage.IdentityFirst
	for _, w := range workloads {
		next = max(next, w.Status.Identity+1)
	}
	for i, w := range workloads {
		if w.Status.Identity < bocage.IdentityFirst {
			copied := *w
			copied.Status.Identity, next = next, next+1
			workloads[i] = &copied
		}
	}
}

// Place finds the file and line of a field. Of what did not come from a file it
// is empty.
func (g *Gathered) Place(ref bocage.Ref) (file string, line int) {
	source := ref.Source
	if d, known := g.documents[objectKey{ref.Kind, ref.Namespace, ref.Name}]; known {
		source = d.Place(bocage.Faults{{Field: ref.Field}})[0].Source
	}
	if i := strings.LastIndexByte(source, ':'); i >= 0 {
		if line, err := strconv.Atoi(source[i+1:]); err == nil {
			return source[:i], line
		}
	}
	return source, 0
}
