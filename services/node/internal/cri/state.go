package cri

import (
	"context"
	"sort"
	"strconv"
	"time"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels and annotations of every sandbox and container of a pod. With them a pod can be
// recognised from the runtime's data alone. The labels are the ones that other CRI tools
// expect.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	AnnotationRestartCount = "io.kubernetes.container.restartCount"
	AnnotationHash         = "io.kubernetes.container.hash"
	AnnotationGrace        = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationMessagePath  = "io.kubernetes.container.terminationMessagePath"
	AnnotationMessageMode  = "io.kubernetes.container.terminationMessagePolicy"
	// AnnotationBackoff is how long to wait after this instance ends before the next one
	// starts, in nanoseconds. It lets a restarted agent continue a crash loop's back-off.
	AnnotationBackoff = "keelson.dev/restart-backoff"
	// AnnotationImages is the IDs of the images that are mounted into the container,
	// separated by commas. They are not to be removed as unused.
	AnnotationImages = "keelson.dev/volume-images"
)

// State is a container's state.
type State int

// The states of a container.
const (
	StateUnknown State = iota
	StateCreated
	StateRunning
	StateExited
)

// Pod is the runtime's state of one pod.
type Pod struct {
	UID, Namespace, Name string
	// Sandboxes and Containers are ordered newest first.
	Sandboxes  []Sandbox
	Containers []Container
}

// Sandbox is one sandbox of a pod.
type Sandbox struct {
	ID          string
	Attempt     uint32
	Ready       bool
	CreatedAt   time.Time
	HostNetwork bool
	// IPs is empty for pods in the host network.
	IPs []string
}

// Container is one instance of a container of a pod.
type Container struct {
	ID, Name, SandboxID      string
	State                    State
	CreatedAt, StartedAt     time.Time
	FinishedAt               time.Time
	ExitCode                 int32
	Reason, Message          string
	Image, ImageRef, ImageID string
	LogPath                  string
	RestartCount             int
	Backoff                  time.Duration
	Hash                     string
	MessagePath, MessageMode string
	MessageHostPath          string
	User                     *runtimev1.LinuxContainerUser
	Resources                *runtimev1.LinuxContainerResources
	Mounts                   []*runtimev1.Mount
}

// Latest returns the newest instance of the container with the given name, or nil.
func (p *Pod) Latest(name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Instances returns all instances of the container with the given name, newest first.
func (p *Pod) Instances(name string) []*Container {
	var out []*Container
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			out = append(out, &p.Containers[i])
		}
	}
	return out
}

// Running returns the containers that run or whose state is unknown.
func (p *Pod) Running() []*Container {
	var out []*Container
	for i := range p.Containers {
		if s := p.Containers[i].State; s == StateRunning || s == StateUnknown {
			out = append(out, &p.Containers[i])
		}
	}
	return out
}

// Sandbox returns the newest sandbox, or nil.
func (p *Pod) Sandbox() *Sandbox {
	if len(p.Sandboxes) == 0 {
		return nil
	}
	return &p.Sandboxes[0]
}

// Pod reads the state of the pod with the given UID. A pod that the runtime does not know
// has neither sandboxes nor containers.
func (c *Client) Pod(ctx context.Context, uid string) (*Pod, error) {
	byUID := map[string]string{LabelPodUID: uid}
	containers, err := c.listContainers(ctx, byUID)
	if err != nil {
		return nil, err
	}
	p := &Pod{UID: uid}
	for _, item := range containers {
		s, err := c.ContainerStatus(ctx, item.Id)
		if NotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p.Namespace, p.Name = s.Labels[LabelPodNamespace], s.Labels[LabelPodName]
		p.Containers = append(p.Containers, FromStatus(s, item.PodSandboxId))
	}
	// Read sandboxes after containers, so that a container that ended with its sandbox is
	// never seen in a sandbox that still looks ready.
	sandboxes, err := c.listSandboxes(ctx, byUID)
	if err != nil {
		return nil, err
	}
	for _, s := range sandboxes {
		p.Namespace, p.Name = s.GetMetadata().GetNamespace(), s.GetMetadata().GetName()
		box := Sandbox{ID: s.Id, Attempt: s.GetMetadata().GetAttempt(), Ready: s.State == runtimev1.PodSandboxState_SANDBOX_READY, CreatedAt: time.Unix(0, s.CreatedAt)}
		p.Sandboxes = append(p.Sandboxes, box)
	}
	sort.Slice(p.Sandboxes, func(i, j int) bool { return p.Sandboxes[i].CreatedAt.After(p.Sandboxes[j].CreatedAt) })
	if len(p.Sandboxes) > 0 {
		if err := c.fillSandbox(ctx, &p.Sandboxes[0]); err != nil && !NotFound(err) {
			return nil, err
		}
	}
	sort.SliceStable(p.Containers, func(i, j int) bool { return p.Containers[i].CreatedAt.After(p.Containers[j].CreatedAt) })
	return p, nil
}

func (c *Client) fillSandbox(ctx context.Context, box *Sandbox) error {
	resp, err := c.SandboxStatus(ctx, box.ID, false)
	if err != nil {
		return err
	}
	s := resp.GetStatus()
	box.Ready = s.GetState() == runtimev1.PodSandboxState_SANDBOX_READY
	box.HostNetwork = s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimev1.NamespaceMode_NODE
	if ip := s.GetNetwork().GetIp(); ip != "" {
		box.IPs = append(box.IPs, ip)
	}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		box.IPs = append(box.IPs, ip.Ip)
	}
	return nil
}

// FromStatus converts the CRI status of a container.
func FromStatus(s *runtimev1.ContainerStatus, sandbox string) Container {
	restarts, _ := strconv.Atoi(s.Annotations[AnnotationRestartCount])
	backoff, _ := strconv.ParseInt(s.Annotations[AnnotationBackoff], 10, 64)
	out := Container{
		ID: s.Id, Name: s.Labels[LabelContainerName], SandboxID: sandbox,
		CreatedAt: unixNano(s.CreatedAt), StartedAt: unixNano(s.StartedAt), FinishedAt: unixNano(s.FinishedAt),
		ExitCode: s.ExitCode, Reason: s.Reason, Message: s.Message,
		Image: s.GetImage().GetImage(), ImageRef: s.ImageRef, ImageID: s.ImageId, LogPath: s.LogPath,
		RestartCount: restarts, Backoff: time.Duration(backoff),
		Hash:        s.Annotations[AnnotationHash],
		MessagePath: s.Annotations[AnnotationMessagePath], MessageMode: s.Annotations[AnnotationMessageMode],
		User: s.GetUser().GetLinux(), Resources: s.GetResources().GetLinux(), Mounts: s.Mounts,
	}
	switch s.State {
	case runtimev1.ContainerState_CONTAINER_CREATED:
		out.State = StateCreated
	case runtimev1.ContainerState_CONTAINER_RUNNING:
		out.State = StateRunning
	case runtimev1.ContainerState_CONTAINER_EXITED:
		out.State = StateExited
	}
	for _, m := range s.Mounts {
		if out.MessagePath != "" && m.ContainerPath == out.MessagePath {
			out.MessageHostPath = m.HostPath
		}
	}
	return out
}

func unixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Seen is one sandbox or container in a relist.
type Seen struct {
	PodUID string
	// PodNamespace and PodName are set for sandboxes only.
	PodNamespace, PodName string
	ID                    string
	State                 int32
	// Sandbox is true for a sandbox and false for a container.
	Sandbox bool
}

// List returns what a relist compares: every sandbox and container that belongs to a pod,
// by ID, with its state.
func (c *Client) List(ctx context.Context) (map[string]Seen, error) {
	sandboxes, err := c.listSandboxes(ctx, nil)
	if err != nil {
		return nil, err
	}
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	out := make(map[string]Seen, len(sandboxes)+len(containers))
	for _, s := range sandboxes {
		if uid := s.Labels[LabelPodUID]; uid != "" {
			out[s.Id] = Seen{PodUID: uid, PodNamespace: s.Labels[LabelPodNamespace], PodName: s.Labels[LabelPodName], ID: s.Id, State: int32(s.State), Sandbox: true}
		}
	}
	for _, s := range containers {
		if uid := s.Labels[LabelPodUID]; uid != "" {
			out[s.Id] = Seen{PodUID: uid, ID: s.Id, State: int32(s.State)}
		}
	}
	return out, nil
}

func (c *Client) listSandboxes(ctx context.Context, labels map[string]string) ([]*runtimev1.PodSandbox, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{Filter: &runtimev1.PodSandboxFilter{LabelSelector: labels}})
	return resp.GetItems(), err
}

func (c *Client) listContainers(ctx context.Context, labels map[string]string) ([]*runtimev1.Container, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{LabelSelector: labels}})
	return resp.GetContainers(), err
}

// RunningContainers returns the IDs of the running containers of pods.
func (c *Client) RunningContainers(ctx context.Context) ([]string, error) {
	list, err := c.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, item := range list {
		if item.State == runtimev1.ContainerState_CONTAINER_RUNNING && item.Labels[LabelPodUID] != "" {
			out = append(out, item.Id)
		}
	}
	return out, nil
}
