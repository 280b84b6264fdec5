package plugin

import "keelson.dev/services/scheduler/internal/state"

// ports refuses nodes on which another pod uses one of the pod's host ports.
type ports struct{ pod *state.Pod }

func (*ports) Name() string { return NodePorts }

func (f *ports) Check(n *state.Node) bool { return n.PortsFree(f.pod.Ports) }

var portsReasons = []string{"node(s) didn't have free ports for the requested pod ports"}

func (*ports) Explain(*state.Node) []string { return portsReasons }

// Curable implements Curable.
func (*ports) Curable(*state.Node) bool { return true }
