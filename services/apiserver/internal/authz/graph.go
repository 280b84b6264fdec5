package authz

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
)

// objectKind is a kind of object that a node may access through its pods.
type objectKind uint8

const (
	podKind objectKind = iota + 1
	secretKind
	configMapKind
	claimKind
	volumeKind
	attachmentKind
	serviceAccountKind
)

// object identifies an object.
type object struct {
	kind            objectKind
	namespace, name string
}

// graph records which nodes need which objects: directly, because the nodes' pods reference them,
// and through volumes, which are bound to claims and reference secrets. It is updated for every
// pod, volume and attachment that is added, changed or removed.
type graph struct {
	mu sync.RWMutex
	// direct counts, for each object and node, the node's pods that reference the object.
	direct map[object]map[string]int32
	// sources holds the objects that were counted for each pod or attachment, to remove them
	// again.
	sources map[object]source
	// volumes holds the claim and secrets of each volume; holders holds the volumes that
	// reference each secret.
	volumes map[string]volume
	holders map[object]map[string]struct{}
}

// source is a pod or an attachment, its node, and what it references.
type source struct {
	uid       types.UID
	ephemeral int // number of ephemeral containers, which may be added later
	node      string
	names     []object
}

type volume struct {
	claim   object
	secrets []object
	// holder is the node that has the data of a local volume, from the volume's label.
	holder string
}

// volumeNode is the label with the name of the node that has the volume's data.
const volumeNode = "keelson.dev/node"

func newGraph() *graph {
	return &graph{
		direct:  make(map[object]map[string]int32),
		sources: make(map[object]source),
		volumes: make(map[string]volume),
		holders: make(map[object]map[string]struct{}),
	}
}

// reaches reports whether a pod of the node needs the object.
func (g *graph) reaches(node string, o object) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.direct[o][node] > 0 {
		return true
	}
	switch o.kind {
	case volumeKind:
		return g.mounts(node, o.name)
	case secretKind:
		for name := range g.holders[o] {
			if g.mounts(node, name) {
				return true
			}
		}
	}
	return false
}

// mounts reports whether a pod of the node uses the volume's claim.
func (g *graph) mounts(node, name string) bool {
	v, ok := g.volumes[name]
	return ok && g.direct[v.claim][node] > 0
}

// holds reports whether the node has the volume's data.
func (g *graph) holds(node, name string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.volumes[name].holder == node
}

// setPod adds or updates a pod. Once a pod is bound, what it references changes only by added
// ephemeral containers.
func (g *graph) setPod(p *corev1.Pod) {
	if p.Spec.NodeName == "" {
		return
	}
	key := object{podKind, p.Namespace, p.Name}
	g.mu.RLock()
	old := g.sources[key]
	g.mu.RUnlock()
	s := source{uid: p.UID, ephemeral: len(p.Spec.EphemeralContainers), node: p.Spec.NodeName}
	if old.uid == s.uid && old.node == s.node && old.ephemeral == s.ephemeral {
		return
	}
	s.names = append(podObjects(p), key)
	g.set(key, s)
}

// setAttachment adds or updates a volume attachment.
func (g *graph) setAttachment(a *storagev1.VolumeAttachment) {
	key := object{kind: attachmentKind, name: a.Name}
	g.set(key, source{uid: a.UID, node: a.Spec.NodeName, names: []object{key}})
}

func (g *graph) set(key object, s source) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(key)
	g.sources[key] = s
	for _, o := range s.names {
		nodes := g.direct[o]
		if nodes == nil {
			nodes = make(map[string]int32, 1)
			g.direct[o] = nodes
		}
		nodes[s.node]++
	}
}

// remove removes a pod or an attachment.
func (g *graph) remove(key object) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(key)
}

func (g *graph) drop(key object) {
	s := g.sources[key]
	for _, o := range s.names {
		nodes := g.direct[o]
		if nodes[s.node]--; nodes[s.node] <= 0 {
			delete(nodes, s.node)
		}
		if len(nodes) == 0 {
			delete(g.direct, o)
		}
	}
	delete(g.sources, key)
}

// setVolume adds or updates a volume. A volume without claim and holder is not recorded.
func (g *graph) setVolume(pv *corev1.PersistentVolume) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dropVolume(pv.Name)
	v := volume{holder: pv.Labels[volumeNode]}
	if ref := pv.Spec.ClaimRef; ref != nil {
		v.claim, v.secrets = object{claimKind, ref.Namespace, ref.Name}, volumeSecrets(pv)
	} else if v.holder == "" {
		return
	}
	g.volumes[pv.Name] = v
	for _, s := range v.secrets {
		if g.holders[s] == nil {
			g.holders[s] = make(map[string]struct{}, 1)
		}
		g.holders[s][pv.Name] = struct{}{}
	}
}

func (g *graph) removeVolume(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dropVolume(name)
}

func (g *graph) dropVolume(name string) {
	for _, s := range g.volumes[name].secrets {
		delete(g.holders[s], name)
		if len(g.holders[s]) == 0 {
			delete(g.holders, s)
		}
	}
	delete(g.volumes, name)
}

// podObjects returns the objects that a pod references. A mirror pod, which the node itself
// created, gives the node nothing.
func podObjects(p *corev1.Pod) []object {
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return nil
	}
	var list []object
	add := func(kind objectKind, name string) {
		if o := (object{kind, p.Namespace, name}); name != "" && !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	secret := func(ref *corev1.LocalObjectReference) {
		if ref != nil {
			add(secretKind, ref.Name)
		}
	}
	add(serviceAccountKind, p.Spec.ServiceAccountName)
	for i := range p.Spec.ImagePullSecrets {
		secret(&p.Spec.ImagePullSecrets[i])
	}
	environment := func(from []corev1.EnvFromSource, env []corev1.EnvVar) {
		for _, f := range from {
			if f.SecretRef != nil {
				add(secretKind, f.SecretRef.Name)
			}
			if f.ConfigMapRef != nil {
				add(configMapKind, f.ConfigMapRef.Name)
			}
		}
		for _, e := range env {
			switch {
			case e.ValueFrom == nil:
			case e.ValueFrom.SecretKeyRef != nil:
				add(secretKind, e.ValueFrom.SecretKeyRef.Name)
			case e.ValueFrom.ConfigMapKeyRef != nil:
				add(configMapKind, e.ValueFrom.ConfigMapKeyRef.Name)
			}
		}
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		environment(c.EnvFrom, c.Env)
	}
	for _, c := range p.Spec.EphemeralContainers {
		environment(c.EnvFrom, c.Env)
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.Secret != nil:
			add(secretKind, v.Secret.SecretName)
		case v.ConfigMap != nil:
			add(configMapKind, v.ConfigMap.Name)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					add(secretKind, s.Secret.Name)
				}
				if s.ConfigMap != nil {
					add(configMapKind, s.ConfigMap.Name)
				}
			}
		case v.PersistentVolumeClaim != nil:
			add(claimKind, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			add(claimKind, p.Name+"-"+v.Name) // KEP-1698
		case v.CSI != nil:
			secret(v.CSI.NodePublishSecretRef)
		case v.AzureFile != nil:
			add(secretKind, v.AzureFile.SecretName)
		case v.CephFS != nil:
			secret(v.CephFS.SecretRef)
		case v.Cinder != nil:
			secret(v.Cinder.SecretRef)
		case v.FlexVolume != nil:
			secret(v.FlexVolume.SecretRef)
		case v.RBD != nil:
			secret(v.RBD.SecretRef)
		case v.ScaleIO != nil:
			secret(v.ScaleIO.SecretRef)
		case v.ISCSI != nil:
			secret(v.ISCSI.SecretRef)
		case v.StorageOS != nil:
			secret(v.StorageOS.SecretRef)
		}
	}
	return list
}

// volumeSecrets returns the secrets that a node needs to mount a volume, without those that only
// a controller needs.
func volumeSecrets(pv *corev1.PersistentVolume) []object {
	var list []object
	add := func(namespace, name string) {
		if namespace == "" && pv.Spec.ClaimRef != nil {
			namespace = pv.Spec.ClaimRef.Namespace
		}
		if o := (object{secretKind, namespace, name}); name != "" && !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	ref := func(r *corev1.SecretReference) {
		if r != nil {
			add(r.Namespace, r.Name)
		}
	}
	s := &pv.Spec.PersistentVolumeSource
	switch {
	case s.CSI != nil:
		ref(s.CSI.NodePublishSecretRef)
		ref(s.CSI.NodeStageSecretRef)
		ref(s.CSI.NodeExpandSecretRef)
	case s.AzureFile != nil:
		namespace := ""
		if s.AzureFile.SecretNamespace != nil {
			namespace = *s.AzureFile.SecretNamespace
		}
		add(namespace, s.AzureFile.SecretName)
	case s.CephFS != nil:
		ref(s.CephFS.SecretRef)
	case s.Cinder != nil:
		ref(s.Cinder.SecretRef)
	case s.FlexVolume != nil:
		ref(s.FlexVolume.SecretRef)
	case s.RBD != nil:
		ref(s.RBD.SecretRef)
	case s.ScaleIO != nil:
		ref(s.ScaleIO.SecretRef)
	case s.ISCSI != nil:
		ref(s.ISCSI.SecretRef)
	case s.StorageOS != nil && s.StorageOS.SecretRef != nil:
		add(s.StorageOS.SecretRef.Namespace, s.StorageOS.SecretRef.Name)
	}
	return list
}
