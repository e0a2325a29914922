import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

/**
 * A Kafka Streams application that counts words exactly once: topic IN has lines, topic OUT gets each word with its count,
 * whenever that grows. Words are sent through a repartition topic; counts are kept in a store with a changelog. It prints
 * its states, and closes when standard input ends.
 */
public final class WordCount {
    public static void main(String[] args) throws Exception {
        Map<String, String> flags = new HashMap<>();
        for (int i = 0; i < args.length; i += 2) {
            flags.put(args[i], args[i + 1]);
        }
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        KafkaStreams streams = new KafkaStreams(topology(flags.get("--topic"), flags.get("--to")).build(), config(flags));
        streams.setStateListener((now, before) -> out.println("state\t" + now));
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            out.println("error\t" + e);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        Driver.endOfInput().join();
        if (!streams.close(Duration.ofSeconds(30))) {
            throw new IllegalStateException("did not close in time");
        }
    }

    private static StreamsBuilder topology(String in, String counted) {
        StreamsBuilder builder = new StreamsBuilder();
        builder.<String, String>stream(in)
            .flatMapValues(line -> List.of(line.split(" ")))
            .groupBy((key, word) -> word, Grouped.as("words"))
            .count(Materialized.as("counts"))
            .toStream()
            .mapValues(count -> String.valueOf(count))
            .to(counted, Produced.with(Serdes.String(), Serdes.String()));
        return builder;
    }

    static Properties config(Map<String, String> flags) {
        Properties config = new Properties();
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, flags.get("--bootstrap"));
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, flags.get("--id"));
        config.put(StreamsConfig.STATE_DIR_CONFIG, flags.get("--state"));
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, flags.get("--commit"));
        config.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, "0"); // each count is passed on
        config.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        config.put(StreamsConfig.consumerPrefix("session.timeout.ms"), flags.get("--session"));
        config.put(StreamsConfig.consumerPrefix("heartbeat.interval.ms"), "500");
        config.put(StreamsConfig.producerPrefix("transaction.timeout.ms"), flags.get("--timeout"));
        return config;
    }
}
