package topics

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// freshTopicsMax is how many topics a request may name to be described as the coordinator has them, so that what was set through
// another agent a moment ago is there. Those of a request for more, as of a dashboard, are described as the view has them.
const freshTopicsMax = 16

// setting is a configuration as it is described.
type setting struct {
	name     string
	kind     kmsg.ConfigType
	value    *string // nil for null
	source   kmsg.ConfigSource
	readOnly bool
	synonyms []kmsg.DescribeConfigsResponseResourceConfigConfigSynonym // where the value comes from, and what it would be otherwise
	doc      string
}

// synonym puts one more source behind those that are known.
func (s *setting) synonym(name, value string, source kmsg.ConfigSource) {
	if len(s.synonyms) == 0 {
		s.value, s.source = &value, source
	}
	c := kmsg.NewDescribeConfigsResponseResourceConfigConfigSynonym()
	c.Name, c.Value, c.Source = name, &value, source
	s.synonyms = append(s.synonyms, c)
}

// topicSetting describes a configuration of a topic (ConfigHelper.createTopicConfigEntry).
func (t *Topics) topicSetting(d *definition, configs map[string]string) setting {
	s := setting{name: d.name, kind: d.kind, value: &d.value, source: kmsg.ConfigSourceDefaultConfig, doc: d.documentation()}
	if _, ok := configs[d.name]; ok {
		s.synonym(d.name, effective(configs, d.name), kmsg.ConfigSourceDynamicTopicConfig)
	}
	if b, ok := t.broker[d.broker]; ok && b.value != nil {
		s.synonym(b.name, *b.value, b.source)
	}
	return s
}

// DescribeConfigs serves DescribeConfigs, versions 1 to 4, as ConfigHelper does: topics; this agent as a broker, whose configurations are all
// read-only; the defaults of groups, which cannot be changed. There are no dynamic defaults of brokers, no levels of loggers and no
// subscriptions to client metrics: they are described as empty.
func (t *Topics) DescribeConfigs(ctx context.Context, req *kmsg.DescribeConfigsRequest) *kmsg.DescribeConfigsResponse {
	ctx, cancel := deadline(ctx, 0)
	defer cancel()
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	named := 0
	for i := range req.Resources {
		if req.Resources[i].ResourceType == kmsg.ConfigResourceTypeTopic {
			named++
		}
	}
	for i := range req.Resources {
		asked := &req.Resources[i]
		out := kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = asked.ResourceType, asked.ResourceName
		settings, err := t.describe(ctx, asked, named <= freshTopicsMax)
		out.ErrorCode, out.ErrorMessage = answer(err)
		for j := range settings {
			if s := &settings[j]; len(asked.ConfigNames) == 0 || slices.Contains(asked.ConfigNames, s.name) {
				out.Configs = append(out.Configs, s.described(req))
			}
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// described is a setting as a request wants to see it.
func (s *setting) described(req *kmsg.DescribeConfigsRequest) kmsg.DescribeConfigsResponseResourceConfig {
	c := kmsg.NewDescribeConfigsResponseResourceConfig()
	c.Name, c.Value, c.ReadOnly, c.Source = s.name, s.value, s.readOnly, s.source
	c.IsDefault = s.source == kmsg.ConfigSourceDefaultConfig
	c.ConfigType = s.kind
	if req.IncludeSynonyms {
		c.ConfigSynonyms = s.synonyms
	}
	if req.IncludeDocumentation {
		c.Documentation = &s.doc
	}
	return c
}

// describe returns the settings of one resource.
func (t *Topics) describe(ctx context.Context, asked *kmsg.DescribeConfigsRequestResource, fresh bool) ([]setting, error) {
	name := asked.ResourceName
	switch asked.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		return t.describeTopic(ctx, name, fresh)
	case kmsg.ConfigResourceTypeBroker:
		if name == "" {
			return nil, nil
		}
		if err := t.checkNode(name); err != nil {
			return nil, err
		}
		return t.brokerSorted, nil
	case kmsg.ConfigResourceTypeBrokerLogger:
		if name == "" {
			return nil, protocol.InvalidRequest.Errorf("Broker id must not be empty")
		}
		return nil, t.checkNode(name)
	case kmsg.ConfigResourceTypeClientMetrics:
		if name == "" {
			return nil, protocol.InvalidRequest.Errorf("Client metrics subscription name must not be empty")
		}
		return nil, nil
	case kmsg.ConfigResourceTypeGroupConfig:
		if name == "" {
			return nil, protocol.InvalidRequest.Errorf("Group name must not be empty")
		}
		return groupSettings(), nil
	default:
		return nil, protocol.InvalidRequest.Errorf("Unsupported resource type: %d", asked.ResourceType)
	}
}

func (t *Topics) describeTopic(ctx context.Context, name string, fresh bool) ([]setting, error) {
	if err := protocol.ValidateTopicName(name); err != nil {
		return nil, err
	}
	var topic coordinator.Topic
	var err error
	if fresh {
		topic, _, err = t.read(ctx, name)
	}
	if !fresh || errors.Is(err, protocol.RequestTimedOut.Err()) {
		var ok bool
		if topic, _, ok = t.deps.View.Topic(name); ok {
			err = nil
		} else if err == nil {
			err = protocol.UnknownTopicOrPartition.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	settings := make([]setting, len(definitions))
	for i := range definitions {
		settings[i] = t.topicSetting(&definitions[i], topic.Configs)
	}
	return settings, nil
}

// checkNode refuses any broker but this agent.
func (t *Topics) checkNode(name string) error {
	node, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return protocol.InvalidRequest.Errorf("Broker id must be an integer, but it is: %s", name)
	}
	if int32(node) != t.deps.Node {
		return protocol.InvalidRequest.Errorf("Unexpected broker id, expected %d or empty string, but received %s", t.deps.Node, name)
	}
	return nil
}
