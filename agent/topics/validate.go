package topics

import (
	"maps"
	"slices"
	"strconv"

	"github.com/varve-io/varve/protocol"
)

// configBytesMax bounds names and values of one topic's configurations: the record is in the memory of every agent.
const configBytesMax = 64 << 10

// validate checks all configurations of a topic and returns them in canonical form, nil for none. Errors are InvalidConfig, with the
// wording of LogConfig.validate; of several, that of the first name.
func validate(configs map[string]string) (map[string]string, error) {
	if len(configs) == 0 {
		return nil, nil
	}
	valid := make(map[string]string, len(configs))
	size := 0
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		i, ok := definitionIndex[name]
		if !ok {
			return nil, protocol.InvalidConfig.Errorf("Unknown topic config name: %s", name)
		}
		value, err := definitions[i].parse(configs[name])
		if err != nil {
			return nil, err
		}
		valid[name] = value
		size += len(name) + len(value)
	}
	if size > configBytesMax {
		return nil, protocol.InvalidConfig.Errorf("The configuration has %d bytes, at most %d are possible.", size, configBytesMax)
	}
	least, most := number(valid, "min.compaction.lag.ms"), number(valid, "max.compaction.lag.ms")
	if least > most {
		return nil, protocol.InvalidConfig.Errorf("conflict topic config setting min.compaction.lag.ms (%d) > max.compaction.lag.ms (%d)", least, most)
	}
	return valid, nil
}

// effective returns the value of a configuration that holds for a topic. What was stored and cannot be read, since another release
// wrote it, counts as not set.
func effective(configs map[string]string, name string) string {
	d := &definitions[definitionIndex[name]]
	if value, ok := configs[name]; ok {
		if canonical, err := d.parse(value); err == nil {
			return canonical
		}
	}
	return d.value
}

// number is effective for a whole number.
func number(configs map[string]string, name string) int64 {
	n, _ := strconv.ParseInt(effective(configs, name), 10, 64) // canonical
	return n
}
