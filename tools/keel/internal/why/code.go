package why

// The codes.
const (
	Healthy Code = "Healthy"
	// Progressing means that a change is under way and nothing blocks it.
	Progressing Code = "Progressing"
	// ControllerBehind means that the controller has not processed the current spec yet.
	ControllerBehind Code = "ControllerBehind"
	// Unknown means that the object has a problem of unknown cause.
	Unknown Code = "Unknown"

	PodSucceeded     Code = "PodSucceeded"
	PodFailed        Code = "PodFailed"
	PodEvicted       Code = "PodEvicted"
	StorageLimit     Code = "LocalStorageLimitExceeded"
	PodRefused       Code = "PodRefusedByNode"
	PodGated         Code = "PodSchedulingGated"
	PodUnschedulable Code = "PodUnschedulable"
	// PodPreempts means that it has a node, once pods of lower priority have left that.
	PodPreempts          Code = "PodAwaitsPreemptedPods"
	PodPreempted         Code = "PodPreempted"
	PodNotScheduled      Code = "PodNotYetScheduled"
	NoScheduler          Code = "NoSchedulerOfThatName"
	NodeGone             Code = "NodeGone"
	NodeNotReady         Code = "NodeNotReady"
	VolumeNotMounted     Code = "VolumeNotMounted"
	ClaimMissing         Code = "ClaimMissing"
	ClaimNotBound        Code = "ClaimNotBound"
	NetworkNotReady      Code = "PodNetworkNotReady"
	ImageUnavailable     Code = "ImageUnavailable"
	ConfigMissing        Code = "ContainerConfigMissing"
	ContainerNotCreated  Code = "ContainerNotCreated"
	OutOfMemory          Code = "ContainerOutOfMemory"
	OutOfProcesses       Code = "ContainerOutOfProcesses"
	ProbeKills           Code = "LivenessProbeFails"
	ContainerExits       Code = "ContainerExits"
	InitRuns             Code = "InitContainerRuns"
	NotStarted           Code = "StartupProbeFails"
	NotReady             Code = "ReadinessProbeFails"
	ReadinessGate        Code = "ReadinessGateNotTrue"
	TerminatingGrace     Code = "TerminatingGracefully"
	TerminatingFinalizer Code = "TerminatingHasFinalizers"
	TerminatingLost      Code = "TerminatingNodeNotReady"

	Paused          Code = "Paused"
	Suspended       Code = "Suspended"
	ScaledToZero    Code = "ScaledToZero"
	CreateRefused   Code = "PodsRefused"
	RolloutStalled  Code = "RolloutStalled"
	PodsHoldUp      Code = "PodsNotAvailable"
	PartitionHolds  Code = "RolloutStopsAtPartition"
	UpdateOnDelete  Code = "UpdatesOnDeleteOnly"
	NoNodeFits      Code = "NoNodeFits"
	JobFailed       Code = "JobFailed"
	JobDeadline     Code = "JobDeadlineExceeded"
	JobBackoffLimit Code = "JobBackoffLimitExceeded"
	BadSchedule     Code = "ScheduleInvalid"
	StillRuns       Code = "PreviousJobStillRuns"
	MissedDeadline  Code = "StartingDeadlineMissed"
	NotDue          Code = "NotDueYet"

	NoClass          Code = "NoStorageClass"
	ClassMissing     Code = "StorageClassMissing"
	WaitsForConsumer Code = "WaitsForFirstPod"
	ProvisionFails   Code = "ProvisioningFails"
	VolumeLost       Code = "VolumeLost"

	NoSelector       Code = "NoSelector"
	SelectsNothing   Code = "SelectorMatchesNoPods"
	NoReadyEndpoints Code = "NoReadyEndpoints"
	PortMismatch     Code = "TargetPortNotFound"
	NoLoadBalancer   Code = "LoadBalancerPending"

	PeerMatchesNothing Code = "PeerMatchesNoPods"

	TargetMissing     Code = "ScaleTargetNotFound"
	TargetHoldsUp     Code = "ScaleTargetNotReady"
	ScaleRefused      Code = "ScaleRefused"
	SharedTarget      Code = "ScaledByAnother"
	RequestMissing    Code = "RequestMissing"
	MetricMissing     Code = "MetricMissing"
	MetricsAPIMissing Code = "MetricsAPIMissing"
	AtMaximum         Code = "AtMaxReplicas"

	NodeSilent   Code = "NodeSilent"
	NodePressure Code = "NodeUnderPressure"
	Cordoned     Code = "NodeCordoned"
)

// severity orders the codes of pods by how well they explain the problem of a workload, the best
// one last.
var severity = []Code{
	Unknown, TerminatingGrace, PodNotScheduled, Progressing, PodPreempts, PodPreempted, InitRuns, NotStarted, NotReady, ReadinessGate, TerminatingLost,
	TerminatingFinalizer, PodGated, NetworkNotReady, VolumeNotMounted, PodFailed, PodEvicted, StorageLimit, NodeNotReady, NodeGone,
	NoScheduler, ClaimNotBound, ClaimMissing, PodUnschedulable, PodRefused, ContainerExits, ProbeKills, OutOfProcesses, OutOfMemory,
	ContainerNotCreated, ConfigMissing, ImageUnavailable,
}
