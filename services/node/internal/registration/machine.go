package registration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// KubeletVersion is the Kubernetes version that the node reports: its behaviour follows
// that version's kubelet.
const KubeletVersion = "v1.37.2"

// What the node reserves before it reports pressure, in bytes of memory and as a share of
// the PIDs. These are the kubelet's defaults.
const (
	reservedMemory = 100 << 20
	minPIDsFree    = 0.01
)

// Reserve is the part of the pods' disk that the node keeps free.
type Reserve struct {
	fraction float64
	bytes    int64
}

// ParseReserve parses a percentage ("10%", the kubelet's default) or a quantity ("1Gi").
func ParseReserve(text string) (Reserve, error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(p >= 0 && p < 100) {
			return Reserve{}, fmt.Errorf("%q: expected a percentage of at least 0%% and below 100%%", text)
		}
		return Reserve{fraction: p / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return Reserve{}, fmt.Errorf("%q: expected a percentage (10%%) or a quantity (1Gi)", text)
	}
	return Reserve{bytes: q.Value()}, nil
}

// of returns the reserve of a disk with the given size, both in bytes.
func (r Reserve) of(disk float64) float64 { return min(disk, r.fraction*disk+float64(r.bytes)) }

// Machine describes the machine that the node runs on, as read at start.
type Machine struct {
	Info     corev1.NodeSystemInfo
	Capacity corev1.ResourceList
	// dir is a directory on the disk that pods use.
	dir     string
	reserve Reserve
}

// ReadMachine reads the machine's properties. dir is on the disk that pods use, of which
// reserve is kept free. overrides replace values of the capacity.
func ReadMachine(dir string, reserve Reserve, maxPods int64, overrides corev1.ResourceList) (*Machine, error) {
	memory, err := memoryField("MemTotal:")
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	m := &Machine{dir: dir, reserve: reserve, Capacity: corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(maxPods, resource.DecimalSI),
	}}
	for _, size := range []string{"1Gi", "2Mi"} {
		m.Capacity[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(0, resource.BinarySI)
	}
	for name, q := range overrides {
		m.Capacity[name] = q
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	m.Info = corev1.NodeSystemInfo{
		MachineID:       readWord("/etc/machine-id"),
		SystemUUID:      readWord("/sys/class/dmi/id/product_uuid"),
		BootID:          readWord("/proc/sys/kernel/random/boot_id"),
		KernelVersion:   string(bytes.TrimRight(uts.Release[:], "\x00")),
		OSImage:         osImage(),
		OperatingSystem: "linux",
		Architecture:    runtime.GOARCH,
		KubeletVersion:  KubeletVersion,
	}
	if m.Info.SystemUUID == "" {
		m.Info.SystemUUID = m.Info.MachineID
	}
	return m, nil
}

// Allocatable returns the part of the capacity that pods may use.
func (m *Machine) Allocatable() corev1.ResourceList {
	out := m.Capacity.DeepCopy()
	memory := out[corev1.ResourceMemory]
	memory.Sub(*resource.NewQuantity(min(reservedMemory, memory.Value()), resource.BinarySI))
	out[corev1.ResourceMemory] = memory
	disk := out[corev1.ResourceEphemeralStorage]
	out[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(disk.Value()-int64(m.reserve.of(float64(disk.Value()))), resource.DecimalSI)
	return out
}

// pressure is what the machine is short of.
type pressure struct{ memory, disk, pids bool }

// pressure checks what is left. Anything that cannot be read is assumed to be sufficient.
func (m *Machine) pressure() pressure {
	var p pressure
	if free, err := memoryField("MemAvailable:"); err == nil {
		p.memory = free < reservedMemory
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.dir, &fs); err == nil && fs.Blocks > 0 {
		p.disk = float64(fs.Bavail)*float64(fs.Bsize) < m.reserve.of(float64(fs.Blocks)*float64(fs.Bsize))
	}
	most, errMost := strconv.ParseFloat(readWord("/proc/sys/kernel/pid_max"), 64)
	fields := strings.Fields(readLine("/proc/loadavg"))
	if errMost == nil && len(fields) > 3 {
		_, total, _ := strings.Cut(fields[3], "/")
		if n, err := strconv.ParseFloat(total, 64); err == nil {
			p.pids = most-n < minPIDsFree*most
		}
	}
	return p
}

// memoryField returns a field of /proc/meminfo in bytes.
func memoryField(name string) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) >= 2 && fields[0] == name {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no " + name)
}

func readWord(name string) string { return strings.TrimSpace(readLine(name)) }

func readLine(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			if u, err := strconv.Unquote(v); err == nil {
				return u
			}
			return v
		}
	}
	return "Linux"
}
