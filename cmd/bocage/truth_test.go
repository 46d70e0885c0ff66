package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/policytest"
)

const truths = "../../policy/kubernetes/testdata"

// TestSimulateKubernetes asks the command itself about every cell of the truth
// tables, under files as Kubernetes writes them: lists with everything that a
// server adds, in any order.
func TestSimulateKubernetes(t *testing.T) {
	total, dir := 0, t.TempDir()
	for tables, cluster := range map[string]string{
		"networkpolicies.txtar": "namespaces.yaml",
		"rules.txtar":           "houses.yaml",
		"tiers.txtar":           "houses.yaml",
	} {
		cases, err := policytest.ReadReachCases(filepath.Join(truths, tables))
		if err != nil {
			t.Fatal(err)
		}
		objects, err := os.ReadFile(filepath.Join(truths, cluster))
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cases {
			t.Run(c.Name, func(t *testing.T) { total += simulateCase(t, dir, i, string(objects), c) })
		}
	}
	t.Logf("%d cells", total)
	if !t.Failed() && total < 7_500 {
		t.Errorf("%d cells are fewer than there were", total)
	}
}

// simulateCase counts the cells.
func simulateCase(t *testing.T, dir string, number int, objects string, c policytest.ReachCase) int {
	file := filepath.Join(dir, "cluster.yaml")
	pods, data := asWritten(t, number, objects+"\n---\n"+c.Policies)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cells, err := c.Cells(pods)
	if err != nil {
		t.Fatal(err)
	}
	// Pods have IPv4 addresses here, so nothing of another family can be asked.
	cells = slices.DeleteFunc(cells, func(cell policytest.ReachCell) bool { return strings.Contains(cell.From+cell.To, ":") })
	var probes bytes.Buffer
	for _, cell := range cells {
		if err := json.NewEncoder(&probes).Encode(bocage.SimulateProbe{From: cell.From, To: cell.To, Name: string(cell.Name), Port: cell.Port, Protocol: cell.Protocol.String()}); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, code := invoke(t, probes.String(), "simulate", "-f", file, "--probes", "-", "-o", "jsonl", "--advice=false")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, errs)
	}
	matrix := reachMatrix(t, file)
	answers := strings.Split(strings.TrimSpace(out), "\n")
	if len(answers) != len(cells) {
		t.Fatalf("%d answers to %d probes", len(answers), len(cells))
	}
	for i, line := range answers {
		var answer bocage.SimulateAnswer
		if err := json.Unmarshal([]byte(line), &answer); err != nil {
			t.Fatal(err)
		}
		cell := cells[i]
		reaches := cell.Reaches || cell.From == cell.To // a Pod reaches itself whatever they say
		if want := map[bool]string{true: "allow", false: "deny"}[reaches]; answer.Verdict != want {
			t.Errorf("%v: %s", cell, line)
		}
		if listed, known := matrix.reaches(cell); known && listed != reaches {
			t.Errorf("%v: the matrix says %t", cell, listed)
		}
	}
	return len(cells)
}

// matrixOf is who is in a matrix, and what it says of each pair.
type matrixOf struct {
	workloads map[string]bool
	cells     map[[2]string][]bocage.ReachSet
}

func reachMatrix(t *testing.T, file string) matrixOf {
	t.Helper()
	out, errs, code := invoke(t, "", "simulate", "-f", file, "--matrix", "-o", "json")
	var m bocage.ReachMatrix
	if err := json.Unmarshal([]byte(out), &m); code != exitOK || err != nil {
		t.Fatalf("exit %d, %v: %s", code, err, errs)
	}
	of := matrixOf{map[string]bool{}, map[[2]string][]bocage.ReachSet{}}
	for _, name := range m.Workloads {
		of.workloads[name] = true
	}
	for _, cell := range m.Cells {
		of.cells[[2]string{cell.From, cell.To}] = cell.Ports
	}
	return of
}

// reaches is known of workloads only.
func (m matrixOf) reaches(cell policytest.ReachCell) (reaches, known bool) {
	for _, set := range m.cells[[2]string{cell.From, cell.To}] {
		if (set.Protocol == cell.Protocol || set.Protocol == bocage.ProtocolAny) && (!cell.Protocol.HasPorts() || set.Ports.Contains(cell.Port)) {
			reaches = true
		}
	}
	return reaches, m.workloads[cell.From] && m.workloads[cell.To]
}

// asWritten is what `kubectl get -o yaml` prints for the objects, or -o json for
// every third: one list, with what a server adds. It names the Pods.
func asWritten(t *testing.T, number int, documents string) (pods []string, data []byte) {
	t.Helper()
	trees, faults := manifest.Parse("case.yaml", []byte(documents))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	var items []any
	for i, tree := range trees {
		var object map[string]any
		if err := json.Unmarshal(tree.JSON(), &object); err != nil {
			t.Fatal(err)
		}
		metadata := object["metadata"].(map[string]any)
		metadata["uid"] = fmt.Sprintf("6e3a6a7e-5a53-4a6c-a3f9-%012d", i)
		metadata["resourceVersion"], metadata["generation"], metadata["creationTimestamp"] = fmt.Sprint(100+i), 1, "2026-01-02T03:04:05Z"
		metadata["annotations"] = map[string]any{"kubectl.kubernetes.io/last-applied-configuration": "{\"spec\":{}}\n"}
		metadata["managedFields"] = []any{map[string]any{"apiVersion": object["apiVersion"], "fieldsType": "FieldsV1", "manager": "kubectl", "operation": "Update",
			"time": "2026-01-02T03:04:05Z", "fieldsV1": map[string]any{"f:metadata": map[string]any{"f:labels": map[string]any{".": map[string]any{}}}}}}
		serverAdds(object)
		if object["kind"] == "Pod" {
			pods = append(pods, fmt.Sprint(metadata["namespace"], "/", metadata["name"]))
		}
		items = append(items, object)
	}
	r := rand.New(rand.NewPCG(uint64(number), 1))
	r.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	list := map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items}
	var err error
	if number%3 == 2 {
		data, err = json.MarshalIndent(list, "", "    ")
	} else {
		data, err = yaml.Marshal(list)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pods, data
}

// serverAdds fills in what a kind's defaults and controllers write.
func serverAdds(object map[string]any) {
	spec, _ := object["spec"].(map[string]any)
	if spec == nil {
		spec = map[string]any{}
	}
	status, _ := object["status"].(map[string]any)
	if status == nil {
		status = map[string]any{}
	}
	switch object["kind"] {
	case "Namespace":
		metadata := object["metadata"].(map[string]any)
		labels, _ := metadata["labels"].(map[string]any)
		if labels == nil {
			labels = map[string]any{}
			metadata["labels"] = labels
		}
		labels[bocage.LabelNamespaceName] = metadata["name"]
		spec["finalizers"], status["phase"] = []any{"kubernetes"}, "Active"
	case "Pod":
		spec["dnsPolicy"], spec["enableServiceLinks"], spec["terminationGracePeriodSeconds"] = "ClusterFirst", true, 30
		spec["tolerations"] = []any{map[string]any{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}}
		status["conditions"] = []any{map[string]any{"type": "Ready", "status": "True", "lastProbeTime": nil, "lastTransitionTime": "2026-01-02T03:04:05Z"}}
		status["containerStatuses"] = []any{map[string]any{"name": "serve", "ready": true, "restartCount": 0, "state": map[string]any{"running": map[string]any{"startedAt": "2026-01-02T03:04:05Z"}}}}
		status["qosClass"] = "BestEffort"
	case "Node":
		spec["podCIDR"] = "10.244.0.0/24"
		status["capacity"] = map[string]any{"cpu": "8", "memory": "32Gi", "pods": "110"}
		status["nodeInfo"] = map[string]any{"kubeletVersion": "v1.36.0", "operatingSystem": "linux"}
	case "ClusterNetworkPolicy":
		status["conditions"] = []any{map[string]any{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}}
	}
	object["spec"], object["status"] = spec, status
}

// TestSimulateRefusesAsKubernetes gives the command each object of the archive:
// what Kubernetes refuses is refused at the field that the file's name says, what
// it takes is taken.
func TestSimulateRefusesAsKubernetes(t *testing.T) {
	archive, err := txtar.ParseFile(filepath.Join(truths, "objects.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i, file := range archive.Files {
		name, field, _ := strings.Cut(file.Name, ": ")
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
			if err := os.WriteFile(path, file.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, errs, code := invoke(t, "", "simulate", "-q", "-f", path, "--matrix", "-o", "json")
			switch {
			case field == "taken":
				if code != exitOK {
					t.Errorf("is refused: %s", errs)
				}
			case code != exitFailed || out != "" || !strings.Contains(errs, path+":") || !strings.Contains(errs, ": "+field+": "):
				t.Errorf("exit %d, want a fault of %s: %s%s", code, field, errs, out)
			case !strings.Contains(errs, "1 fault;"):
				t.Errorf("several faults: %s", errs)
			}
		})
	}
}
