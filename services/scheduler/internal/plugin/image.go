package plugin

import "keelson.dev/services/scheduler/internal/state"

// Sizes of images, in bytes. Totals up to leastImages score 0, and totals from
// mostImages per image score the most.
const (
	leastImages = 23 << 20
	mostImages  = 1000 << 20
)

// ImageLocality prefers nodes that have the pod's images. An image that few nodes have
// counts little, so that these nodes do not get all the pods.
func ImageLocality(env *Env, p *state.Pod) func(n *state.Node) int64 {
	spec := &p.Object.Spec
	var names []string
	for i := range spec.InitContainers {
		names = append(names, state.ImageName(spec.InitContainers[i].Image))
	}
	for i := range spec.Containers {
		names = append(names, state.ImageName(spec.Containers[i].Image))
	}
	for i := range spec.Volumes {
		if v := spec.Volumes[i].Image; v != nil {
			names = append(names, state.ImageName(v.Reference))
		}
	}
	most := int64(mostImages) * int64(len(names))
	return func(n *state.Node) int64 {
		var sum int64
		for _, name := range names {
			if size, ok := n.Images[name]; ok {
				sum += int64(float64(size) * float64(env.NodesWithImage(name)) / float64(env.NodeCount()))
			}
		}
		sum = min(max(sum, leastImages), most)
		if most == leastImages {
			return 0
		}
		return MaxScore * (sum - leastImages) / (most - leastImages)
	}
}
