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

// Machine describes the machine that the node runs on, as read at start.
type Machine struct {
	Info     corev1.NodeSystemInfo
	Capacity corev1.ResourceList
	// reserved returns what is kept free of a capacity.
	reserved func(corev1.ResourceList) corev1.ResourceList
}

// ReadMachine reads the machine's properties. dir is on the disk that pods use. reserved
// returns what pods may not use of a capacity. overrides replace values of the capacity.
func ReadMachine(dir string, reserved func(corev1.ResourceList) corev1.ResourceList, maxPods int64, overrides corev1.ResourceList) (*Machine, error) {
	memory, err := memoryField("MemTotal:")
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	m := &Machine{reserved: reserved, Capacity: corev1.ResourceList{
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
	for name, reserved := range m.reserved(m.Capacity) {
		q := out[name]
		q.Sub(reserved)
		if name == corev1.ResourceEphemeralStorage {
			q.Format = resource.DecimalSI // as the kubelet shows it
		}
		out[name] = q
	}
	return out
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
