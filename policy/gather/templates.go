package gather

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// template is what a controller makes Pods of, and where it is declared.
type template struct {
	kubernetes.Template
	source string
}

// mostStandIns bounds the Pods that stand for those of one controller: replicas are
// alike to policy.
const mostStandIns = 100

// addTemplatePods adds the Pods that Deployments and the like will make, named NAME-0 and so
// on, as a StatefulSet names them. If the files have a Pod with the template's labels, as
// the output of a cluster has, nothing is added: its Pods are known.
func (g *Gatherer) addTemplatePods() {
	slices.SortFunc(g.templates, func(a, b template) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
	})
	known := map[string][]kubernetes.Pod{}
	for _, p := range g.pods {
		known[p.Namespace] = append(known[p.Namespace], p)
	}
	controllers, pods := 0, 0
	for _, t := range g.templates {
		if t.Owned {
			continue
		}
		if i := slices.IndexFunc(known[t.Namespace], t.made); i >= 0 {
			g.meant(t, known[t.Namespace][i].Name)
			continue
		}
		replicas := min(t.Replicas, mostStandIns)
		var nodes []string
		if t.PerNode {
			for _, h := range g.out.Input.Hosts {
				nodes = append(nodes, h.Name)
			}
			slices.Sort(nodes)
			replicas = min(max(int64(len(nodes)), 1), mostStandIns)
		}
		name := t.NamespacedName()
		if replicas == 0 {
			g.out.Unusable[name] = fmt.Sprintf("%s %s has no replicas: nothing is there", t.Kind, name)
			continue
		}
		controllers++
		for i := range replicas {
			pod := t.Pod
			copied := *t.Workload
			pod.Workload = &copied
			copied.Name = fmt.Sprintf("%s-%d", t.Name, i)
			copied.Labels = maps.Clone(t.Labels)
			copied.Annotations = map[string]string{bocage.SourceAnnotation: t.source}
			if t.Kind == "StatefulSet" {
				if copied.Labels == nil {
					copied.Labels = map[string]string{}
				}
				copied.Labels["statefulset.kubernetes.io/pod-name"] = copied.Name
				copied.Labels["apps.kubernetes.io/pod-index"] = fmt.Sprint(i)
			}
			if int(i) < len(nodes) {
				copied.Spec.Host = nodes[i]
			}
			if faults := g.claim("Workload", &copied.ObjectMeta, t.source); len(faults) > 0 {
				g.note("%s %s: no Pod stands for its replica %d, for %s", t.Kind, name, i, faults[0].Message)
				continue
			}
			g.pods = append(g.pods, pod)
			pods++
		}
		g.meant(t, t.Name+"-0")
		if t.Replicas > mostStandIns && !t.PerNode {
			g.note("%s %s has %d replicas, which are alike: %d stand for them", t.Kind, name, t.Replicas, mostStandIns)
		}
	}
	if pods > 0 {
		g.note("%d Pods stand for those that %d controllers such as Deployments will make: NAME-0, NAME-1 and so on", pods, controllers)
	}
}

// meant tells who asks about the controller whom to name instead.
func (g *Gatherer) meant(t template, pod string) {
	name := t.NamespacedName()
	if _, taken := g.sources[objectKey{"Workload", t.Namespace, t.Name}]; !taken {
		g.out.Unusable[name] = fmt.Sprintf("%s is a %s: name one of its Pods, such as %s/%s", name, t.Kind, t.Namespace, pod)
	}
}

// made reports whether a Pod was made of the template: it has its labels.
func (t template) made(p kubernetes.Pod) bool {
	for key, value := range t.Labels {
		if p.Labels[key] != value {
			return false
		}
	}
	return len(t.Labels) > 0
}
