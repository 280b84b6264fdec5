package fault

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The wall clock of a process is changed in its vDSO, the code that the kernel maps into each
// process and that Go calls to read the time. There is no other way to change the clock of a single
// process: a time namespace has no wall clock of its own. The monotonic clock is not changed, as
// when a machine's clock is set.

// clockHook is the address of the offset in a process; 0 until it is installed.
type clockHook struct{ at int64 }

// JumpClock sets the offset of the member's wall clock from this machine's. A new process of the
// member starts without an offset.
func (m *Member) JumpClock(by time.Duration) error {
	m.mu.Lock()
	pid, hook := m.pid, m.hook
	m.mu.Unlock()
	if pid == 0 {
		return errors.New("the process is not running")
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	if hook.at == 0 {
		if hook.at, err = installClock(pid, mem); err != nil {
			return err
		}
		m.mu.Lock()
		if m.pid == pid {
			m.hook = hook
		}
		m.mu.Unlock()
	}
	_, err = mem.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(int64(by/time.Second))), hook.at)
	return err
}

// clockCode is clock_gettime(edi, rsi) as a system call that adds an offset to CLOCK_REALTIME. The
// offset, in whole seconds, is in the eight bytes before the code.
var clockCode = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi
	0x75, 0x0a, // jne +10
	0x48, 0x8b, 0x15, 0xe6, 0xff, 0xff, 0xff, // mov rdx, [rip-26]: the eight bytes
	0x48, 0x01, 0x16, // add [rsi], rdx
	0xc3, // ret
}

// installClock writes clockCode into a process's vDSO while the process is stopped, and
// returns the address of the offset.
func installClock(pid int, mem *os.File) (int64, error) {
	if runtime.GOARCH != "amd64" {
		return 0, errors.New("changing the clock of a process is supported on amd64 only")
	}
	from, to, err := mapping(pid, "[vdso]")
	if err != nil {
		return 0, err
	}
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return 0, fmt.Errorf("read the vDSO: %w", err)
	}
	entry, body, err := clockPlace(image)
	if err != nil {
		return 0, err
	}
	for range 100 {
		inside, err := installStopped(pid, mem, from, to, from+entry, from+body)
		if err != nil || !inside {
			return from + body, err
		}
	}
	return 0, errors.New("a thread was in the vDSO at every attempt")
}

// installStopped stops the process and writes the code, unless a thread is in the vDSO.
func installStopped(pid int, mem *os.File, from, to, entry, body int64) (inside bool, err error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return false, err
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false, err
	}
	for _, t := range tasks {
		pc := int64(-1)
		for deadline := time.Now().Add(time.Second); pc < 0; {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, t.Name()))
			if err != nil {
				return false, err
			}
			if fields := strings.Fields(string(line)); len(fields) > 1 { // otherwise the thread has not stopped yet
				pc, err = strconv.ParseInt(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
				if err != nil {
					return false, err
				}
			} else if time.Now().After(deadline) {
				return true, nil
			}
		}
		if pc >= from && pc < to {
			return true, nil
		}
	}
	if _, err := mem.WriteAt(append(make([]byte, 8), clockCode...), body); err != nil {
		return false, fmt.Errorf("write the vDSO: %w", err)
	}
	jump := append([]byte{0xe9}, binary.LittleEndian.AppendUint32(nil, uint32(int32(body+8-(entry+5))))...)
	_, err = mem.WriteAt(jump, entry)
	return false, err
}

// clockPlace finds clock_gettime in a vDSO, and space for the code after its last section.
func clockPlace(image []byte) (entry, body int64, err error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, 0, err
	}
	var last int64
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			entry = int64(s.Value)
		}
	}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			last = max(last, int64(s.Addr+s.Size))
		}
	}
	// Aligned, so that the offset is written atomically.
	body = (last + 15) &^ 15
	if entry == 0 || body+int64(8+len(clockCode)) > int64(len(image)) {
		return 0, 0, errors.New("the vDSO has no clock_gettime or not enough space")
	}
	return entry, body, nil
}

// mapping returns the address range of the process's mapping of that name.
func mapping(pid int, name string) (from, to int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), name) {
			_, err := fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, fmt.Errorf("process %d has no mapping %s", pid, name)
}
