"""What computations return: frozen dataclasses of NumPy arrays that know their own dimensions, units and labels."""

from sharpness.records.fields import ONE as ONE
from sharpness.records.fields import Variable as Variable
from sharpness.records.fields import axis_label as axis_label
from sharpness.records.fields import settings as settings
from sharpness.records.fields import variables as variables
from sharpness.records.landscapes import AxisCurvature as AxisCurvature
from sharpness.records.landscapes import ConvexityMap as ConvexityMap
from sharpness.records.landscapes import LineLosses as LineLosses
from sharpness.records.landscapes import PlaneLosses as PlaneLosses
from sharpness.records.landscapes import ProfileLosses as ProfileLosses
from sharpness.records.measures import Comparison as Comparison
from sharpness.records.measures import EigenPairs as EigenPairs
from sharpness.records.measures import EpsilonSharpness as EpsilonSharpness
from sharpness.records.measures import History as History
from sharpness.records.measures import LayerCurvature as LayerCurvature
from sharpness.records.measures import ProductCost as ProductCost
from sharpness.records.measures import Rescaling as Rescaling
from sharpness.records.measures import SpectralDensity as SpectralDensity
from sharpness.records.measures import TraceEstimate as TraceEstimate
from sharpness.records.measures import Trajectory as Trajectory

RECORDS = {
    record.kind: record
    for record in (
        History,
        EigenPairs,
        SpectralDensity,
        TraceEstimate,
        LayerCurvature,
        EpsilonSharpness,
        LineLosses,
        ProfileLosses,
        PlaneLosses,
        ConvexityMap,
        AxisCurvature,
        Comparison,
        Trajectory,
        Rescaling,
        ProductCost,
    )
}
